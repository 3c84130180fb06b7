"""What is done with rounds: they are kept as a baseline, compared with one, and the verdict becomes an exit code."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ringmain.bench.files import try_to_write
from ringmain.bench.rounds import FIGURES, compare, load_baseline, save_baseline

# Which verdicts fail a run that is to fail on one; the first is the worst.
FAIL_ON = {"regression": ("regression",), "inconclusive": ("regression", "inconclusive")}
EXIT_CODES = {"regression": 1, "inconclusive": 75}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """What is done with rounds, of which there are `rounds` then; it fails on `fail_on`, or whatever is worse."""

    rounds: int
    save_baseline: str | None
    baseline: str | None
    noise_threshold: float
    fail_on: str | None
    force: bool

    @property
    def wanted(self) -> bool:
        """Whether there are to be rounds at all."""
        return self.save_baseline is not None or self.baseline is not None

    def exit_code(self, verdict: str | None) -> int:
        """Return the exit code of a verdict, None where nothing was compared."""
        fails = self.fail_on is not None and verdict in FAIL_ON[self.fail_on]
        return EXIT_CODES[verdict] if fails and verdict is not None else 0


class Judge:
    """Compares the rounds of tests with a baseline, and keeps them as another, where a gate wants that.

    `settings` are what each test measures, by its name, and `figures` those of `FIGURES` that count. What cannot be
    read or written is found out at once.
    """

    def __init__(
        self, gate: Gate, settings: dict[str, dict[str, Any]], figures: Sequence[str] = tuple(FIGURES)
    ) -> None:
        self._gate = gate
        self._settings = settings
        self._figures = figures
        self._kept: dict[str, dict[str, Any]] = {}
        self._then = None if gate.baseline is None else load_baseline(gate.baseline, settings, force=gate.force)
        if gate.save_baseline is not None:
            try_to_write(gate.save_baseline, "--save-baseline")

    def judged(self, name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a result has besides: the rounds of a test, and how they compare with the baseline."""
        self._kept[name] = {"settings": self._settings[name], "rounds": rounds}
        if self._then is None:
            return {"rounds": rounds}
        then = self._then[name]
        comparison = compare(then, rounds, self._gate.noise_threshold, self._figures)
        return {"rounds": rounds, "comparison": {**comparison, "baseline_rounds": then}}

    def save(self) -> None:
        """Write the baseline of all that was judged, if that is wanted."""
        if self._gate.save_baseline is not None:
            save_baseline(self._gate.save_baseline, self._kept)
