"""Rounds of a measurement that alternate with a reference, a baseline made of them, and the verdict on new ones.

A machine is not as fast today as it was yesterday. So each round also measures a transfer that ringmain has no part in
(Python's own sockets), and what is kept and compared is the ratio of the two.
"""

import json
import math
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ringmain.bench.files import write
from ringmain.bench.result import Measurement, machine
from ringmain.bench.wire import read_json
from ringmain.errors import InputError, UsageError, reason

Result = TypeVar("Result")

# What is compared, and whether more is better.
FIGURES = {"gb_per_second": True, "cpu_seconds_per_gb": False}
CONFIDENCE = 0.99
_RESAMPLES = 4000
_FORMAT = 1
# What makes results of two machines incomparable.
_MACHINE = ("cpu", "cpus", "system")


async def alternate(
    ours: Callable[[], Awaitable[Result]],
    reference: Callable[[], Awaitable[Measurement]],
    figures: Callable[[Result], dict[str, float]],
    rounds: int,
    on_round: Callable[[int], None],
) -> tuple[Result, list[dict[str, Any]]]:
    """Measure in rounds, ours and the reference in turns; return ours with the median throughput, and the rounds."""
    results, table = [], []
    for number in range(rounds):
        on_round(number)
        if number % 2 == 0:
            result, other = await ours(), await reference()
        else:
            other, result = await reference(), await ours()
        results.append(result)
        table.append({"ringmain": figures(result), "reference": figures_of(other)})
    ordered = sorted(results, key=lambda it: figures(it)["gb_per_second"])
    return ordered[(len(ordered) - 1) // 2], table


def figures_of(measurement: Measurement) -> dict[str, float]:
    """Return what is compared of a measurement: the throughput, and the CPU time of this end."""
    local, receiver = measurement.local, measurement.receiver
    size = sum(local["sizes"])
    return figures_from(sum(receiver["sizes"]), receiver["seconds"], local["user"] + local["system"], size)


def figures_from(received: int, seconds: float, cpu: float, size: int) -> dict[str, float]:
    """Return what is compared: the bytes that were `received`, and the CPU time that this end took for its `size`."""
    return {
        "gb_per_second": received / max(seconds, 1e-9) / 1e9,
        "cpu_seconds_per_gb": cpu / max(1, size) * 1e9,
    }


def ratios(rounds: Sequence[dict[str, Any]], figure: str) -> list[float]:
    """Return ringmain's figure over the reference's, of each round."""
    return [it["ringmain"][figure] / max(it["reference"][figure], 1e-12) for it in rounds]


def compare(
    then: Sequence[dict[str, Any]],
    now: Sequence[dict[str, Any]],
    threshold: float,
    names: Sequence[str] = tuple(FIGURES),
) -> dict[str, Any]:
    """Return the verdict on rounds: for each figure the ratio of now to then with an interval, and all of it in a word.

    A figure is a regression if all of its interval is worse by more than the threshold, ok if none is. `names` are
    the figures that count.
    """
    figures = {}
    for figure in names:
        more_is_better = FIGURES[figure]
        old, new = ratios(then, figure), ratios(now, figure)
        low, high = _interval(old, new)
        worst, best = (low, high) if more_is_better else (1 / max(high, 1e-12), 1 / max(low, 1e-12))
        bar = 1 - threshold
        verdict = "regression" if best < bar else "ok" if worst >= bar else "inconclusive"
        ratio = statistics.median(new) / max(statistics.median(old), 1e-12)
        figures[figure] = {"ratio": ratio, "low": low, "high": high, "verdict": verdict}
    return {
        "noise_threshold": threshold,
        "confidence": CONFIDENCE,
        "figures": figures,
        "verdict": overall(it["verdict"] for it in figures.values()),
    }


def overall(verdicts: Any) -> str:
    """Return the worst of several verdicts."""
    found = set(verdicts)
    return next((it for it in ("regression", "inconclusive") if it in found), "ok")


def _interval(old: list[float], new: list[float]) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the ratio of two medians."""
    chance = random.Random(0)  # the same rounds always get the same verdict

    def resampled(values: list[float]) -> float:
        return statistics.median(chance.choices(values, k=len(values)))

    found = sorted(resampled(new) / max(resampled(old), 1e-12) for _ in range(_RESAMPLES))
    tail = int((1 - CONFIDENCE) / 2 * _RESAMPLES)
    return found[tail], found[-1 - tail]


def save_baseline(path: str, tests: dict[str, dict[str, Any]]) -> None:
    """Write what later rounds are compared with: for each test its `settings` and `rounds`."""
    text = json.dumps({"ringmain_baseline": _FORMAT, "machine": machine(), "tests": tests}, indent=1)
    write(path, text + "\n", "--save-baseline")


def load_baseline(path: str, settings: dict[str, dict[str, Any]], *, force: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the rounds of each test; refuse a baseline of another machine, or of other settings, unless forced."""
    try:
        baseline = read_json(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"read {path}", reason(error), "make one with --save-baseline") from error
    except ValueError as error:
        raise InputError(f"baseline {path}", "it is not JSON", "make one with --save-baseline") from error
    try:
        differing = _different(baseline, settings)
        rounds: dict[str, list[dict[str, Any]]] = {test: baseline["tests"][test]["rounds"] for test in settings}
        if not all(_is_measured(it) for it in rounds.values()):
            raise ValueError
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        what, why = f"baseline {path}", "it has no results for these options"
        raise InputError(what, why, "make one with --save-baseline and the same options") from error
    if differing and not force:
        remedy = "make one here with --save-baseline, or compare all the same with --force"
        raise UsageError(f"baseline {path}", "; ".join(dict.fromkeys(differing)), remedy)
    return rounds


def _is_measured(rounds: list[dict[str, Any]]) -> bool:
    figures = [value for figure in FIGURES for value in ratios(rounds, figure)]
    return len(figures) > 0 and all(map(math.isfinite, figures))


def _different(baseline: dict[str, Any], settings: dict[str, dict[str, Any]]) -> list[str]:
    """Return in what a baseline differs from this machine and these tests; raise where it is none."""
    if baseline["ringmain_baseline"] != _FORMAT:
        raise KeyError
    pairs = [({name: it[name] for name in _MACHINE if name in it}) for it in (baseline["machine"], machine())]
    both = [(pairs[0], pairs[1]), *((baseline["tests"][test]["settings"], mine) for test, mine in settings.items())]
    return [
        f"{name} {theirs.get(name)!r} there, {mine.get(name)!r} here"
        for theirs, mine in both
        for name in {**theirs, **mine}
        if theirs.get(name) != mine.get(name)
    ]
