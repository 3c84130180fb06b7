"""One run of `ringmain bench`: measure, tell about it in the form that was asked for, and return the exit code."""

import dataclasses
from typing import Any, Protocol

from ringmain.bench.client import measure
from ringmain.bench.files import try_to_write
from ringmain.bench.loopback import Measure, loopback
from ringmain.bench.plan import Plan
from ringmain.bench.result import Measurement, about, interval_of, result_of
from ringmain.bench.rounds import alternate, compare, load_baseline, middle, overall, save_baseline
from ringmain.bench.table import comparison_table, result_table, tests_table
from ringmain.endpoint import Endpoint
from ringmain.settings import Settings

EXIT_CODES = {"ok": 0, "regression": 1, "inconclusive": 75}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds:
    """What is done with rounds, of which there are `rounds` then."""

    rounds: int
    save_baseline: str | None
    baseline: str | None
    noise_threshold: float
    fail_on_regression: bool
    force: bool

    @property
    def wanted(self) -> bool:
        """Whether there are to be rounds at all."""
        return self.save_baseline is not None or self.baseline is not None


class Teller(Protocol):
    """Tells of a run while it goes on."""

    def event(self, name: str, data: Any, **more: Any) -> None:
        """Tell machines."""

    def interval(self, interval: dict[str, Any]) -> None:
        """Tell of an interval."""

    def line(self, text: str = "") -> None:
        """Tell people, in the place of what was told last."""


class Run:
    """Measures one test or several and keeps what came of them."""

    def __init__(self, gate: Rounds, teller: Teller) -> None:
        self._gate = gate
        self._teller = teller
        self._about = about()
        self.results: dict[str, dict[str, Any]] = {}

    async def of_endpoint(self, endpoint: Endpoint, settings: Settings, plan: Plan) -> None:
        """Measure with a server."""

        async def run(it: Plan) -> Measurement:
            return await measure(
                endpoint,
                settings,
                it,
                lambda started: self._teller.event("start", started, engine=it.engine),
                lambda interval: self._teller.interval(interval_of(interval, not it.reverse)),
            )

        tls = endpoint.tls or settings.tls
        await self._all({"": (plan, run)}, {"endpoint": f"{endpoint.host}:{endpoint.port}", "tls": tls})

    async def of_loopback(self, plan: Plan) -> None:
        """Measure this machine with itself."""
        self._teller.event("start", self._about)
        async with loopback(plan) as tests:
            await self._all(tests, {"endpoint": "loopback"})

    async def _all(self, tests: dict[str, tuple[Plan, Measure]], common: dict[str, Any]) -> None:
        settings = {name: {**plan.message(), **common} for name, (plan, _) in tests.items()}
        gate, then = self._gate, None
        # What cannot be read or written is found out before anything is measured.
        if gate.baseline is not None:
            then = load_baseline(gate.baseline, settings, force=gate.force)
        if gate.save_baseline is not None:
            try_to_write(gate.save_baseline, "--save-baseline")
        for at, (name, (plan, run)) in enumerate(tests.items()):
            count = f"{at + 1} of {len(tests)}: {name}" if name else ""
            self.results[name] = await self._one(plan, run, count)
            if then is not None:
                rounds = self.results[name]["rounds"]
                self.results[name]["comparison"] = {
                    **compare(then[name], rounds, gate.noise_threshold),
                    "baseline_rounds": then[name],
                }
            if name:
                self._teller.event("end", self.results[name]["end"], test=name)
        if gate.save_baseline is not None:
            kept = {name: {"settings": settings[name], "rounds": it["rounds"]} for name, it in self.results.items()}
            save_baseline(gate.save_baseline, kept)

    async def _one(self, plan: Plan, run: Measure, words: str) -> dict[str, Any]:
        if not self._gate.wanted:
            self._teller.line(words)
            return result_of(await run(plan))
        total = self._gate.rounds
        measurements, rounds = await alternate(
            run, plan, total, lambda number: self._teller.line(f"{words}  round {number + 1} of {total}".strip())
        )
        return {**result_of(middle(measurements)), "rounds": rounds}

    @property
    def verdict(self) -> str | None:
        """The worst verdict of all tests; None if nothing was compared."""
        found = [it["comparison"]["verdict"] for it in self.results.values() if "comparison" in it]
        return overall(found) if found else None

    def whole(self) -> dict[str, Any]:
        """Return everything as one object: a test like iperf3's, or all of the loopback's under `tests`."""
        verdict = {} if self.verdict is None else {"verdict": self.verdict}
        if "" in self.results:
            return {**self.results[""], **verdict}
        return {"start": self._about, "tests": self.results, **verdict}

    def text(self, width: int) -> str:
        """Return everything as it is read, in lines of so many columns."""
        parts = []
        if "" in self.results:
            parts.append(result_table(self.results[""], width))
        else:
            parts.append(f"{self._about['system_info']}\n\n{tests_table(self.results, width)}")
        comparisons = {name: it["comparison"] for name, it in self.results.items() if "comparison" in it}
        if comparisons:
            parts.append(f"{comparison_table(comparisons, width)}\n\nverdict: {self.verdict}")
        return "\n\n".join(parts)

    @property
    def exit_code(self) -> int:
        """The verdict's, where it is to count."""
        return EXIT_CODES[self.verdict or "ok"] if self._gate.fail_on_regression else 0
