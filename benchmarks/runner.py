"""Run benches in rounds and keep what came of it."""

import time
from collections.abc import Iterable
from typing import Any

from benchmarks import transfers
from benchmarks.bench import Bench
from benchmarks.machine import describe_machine, load_average
from benchmarks.tables import say, table
from benchmarks.workshop import BenchError, Workshop

SMOKE_SIZE = 4 << 20
COMPARED_SIZE = 32 << 20
Results = dict[str, Any]


def run(benches: Iterable[Bench], rounds: int | None) -> Results:
    """Measure; return everything that was found, fit for JSON: samples[contender][round] of each bench."""
    with Workshop() as workshop:
        results: Results = {"machine": describe_machine(), "benches": {}}
        for bench in benches:
            started = time.monotonic()
            results["benches"][bench.name] = found = _run_bench(workshop, bench, rounds or bench.rounds)
            say(table(bench.name, found))
            say(f"({time.monotonic() - started:.0f} s)\n")
        results["machine"]["load average after"] = load_average()
    return results


def smoke(benches: Iterable[Bench]) -> dict[str, str]:
    """Compare the bytes at both ends of every contender that moves streams; return what came of each."""
    outcome: dict[str, str] = {}
    with Workshop() as workshop:
        for bench in benches:
            if bench.measure is not transfers.measure:
                continue
            for contender in bench.contenders:
                what = f"{bench.name}: {contender.name}"
                missing = workshop.lacks(contender.command, tls=bench.shape.tls)
                outcome[what] = f"skipped, {missing} is missing" if missing else "the bytes agree"
                if not missing:
                    transfers.compare(workshop, bench.shape, contender, SMOKE_SIZE)
                say(f"{what}: {outcome[what]}")
    return outcome


def _run_bench(workshop: Workshop, bench: Bench, rounds: int) -> Results:
    """Measure the contenders of a bench, one after the other in each round, after each has been compared once."""
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    load = load_average()
    contenders = []
    samples: dict[str, list[transfers.Sample]] = {}
    for contender in bench.contenders:
        if missing := workshop.lacks(contender.command, tls=bench.shape.tls):
            skipped[contender.name] = f"{missing} is missing"
        else:
            contenders.append(contender)
            samples[contender.name] = []
    for turn in range(rounds):
        for contender in contenders:
            if contender.name in failed:
                continue
            try:
                if turn == 0 and bench.compared and bench.measure is transfers.measure:
                    transfers.compare(workshop, bench.shape, contender, COMPARED_SIZE)
                samples[contender.name].append(bench.measure(workshop, bench.shape, contender))
            except BenchError as error:
                failed[contender.name] = str(error)
    return {
        "title": bench.title,
        "reference": bench.reference,
        "load average before": load,
        "sizes": {contender.name: contender.size for contender in contenders if contender.size},
        "skipped": skipped,
        "failed": failed,
        "samples": samples,
    }
