"""One run of `ringmain bench`: measure, tell about it in the form that was asked for, and return the exit code."""

import dataclasses
from typing import Any, Protocol

from ringmain.bench.client import measure
from ringmain.bench.gate import Gate, Judge
from ringmain.bench.loopback import Measure, loopback
from ringmain.bench.plan import Plan
from ringmain.bench.result import Measurement, about, interval_of, result_of
from ringmain.bench.rounds import alternate, figures_of, overall
from ringmain.bench.table import result_table, tests_table, verdict_table
from ringmain.endpoint import Endpoint
from ringmain.settings import Settings


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

    def __init__(self, gate: Gate, teller: Teller) -> None:
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
        judge = Judge(self._gate, {name: {**plan.message(), **common} for name, (plan, _) in tests.items()})
        for at, (name, (plan, run)) in enumerate(tests.items()):
            count = f"{at + 1} of {len(tests)}: {name}" if name else ""
            if self._gate.wanted:
                measurement, rounds = await self._rounds(plan, run, count)
                self.results[name] = {**result_of(measurement), **judge.judged(name, rounds)}
            else:
                self._teller.line(count)
                self.results[name] = result_of(await run(plan))
            if name:
                self._teller.event("end", self.results[name]["end"], test=name)
        judge.save()

    async def _rounds(self, plan: Plan, run: Measure, words: str) -> tuple[Measurement, list[dict[str, Any]]]:
        reference = dataclasses.replace(plan, engine="reference", through="blocks")
        total = self._gate.rounds

        def tell(number: int) -> None:
            self._teller.line(f"{words}  round {number + 1} of {total}".strip())

        return await alternate(lambda: run(plan), lambda: run(reference), figures_of, total, tell)

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
            parts.append(verdict_table(comparisons, width))
        return "\n\n".join(parts)

    @property
    def exit_code(self) -> int:
        """The verdict's, where it is to count."""
        return self._gate.exit_code(self.verdict)
