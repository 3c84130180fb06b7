"""Load tests in rounds, for a baseline or to be compared with one."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from ringmain.bench.gate import Gate, Judge
from ringmain.bench.loopback import loopback
from ringmain.bench.plan import Plan
from ringmain.bench.replay_result import Test
from ringmain.bench.rounds import alternate

# Of the transfer that each round is compared with, in seconds.
_SECONDS, _WARM_UP = 0.5, 0.25
# Only the throughput counts: the CPU time is that of ringmain, which is not what is tested.
_FIGURES = ["gb_per_second"]


async def in_rounds(
    gate: Gate,
    verb: Literal["save", "load"],
    settings: dict[str, Any],
    test: Callable[[], Awaitable[Test]],
    on_round: Callable[[int], None],
) -> tuple[Test, dict[str, Any]]:
    """Test in rounds, each over a connection of its own; return the median one, and what its result has besides.

    In turns with them this machine is measured with itself, by Python's own sockets, plain or with TLS as the
    `settings` say, which are those of the test. Raises the error of the round that fails.
    """
    judge = Judge(gate, {verb: settings}, _FIGURES)

    async def ours() -> Test:
        it = await test()
        if it.error is not None:
            raise it.error
        return it

    async with loopback(Plan(seconds=_SECONDS, omit=_WARM_UP, engine="reference")) as tests:
        way = "send {} from blocks" if verb == "save" else "receive {} to blocks"
        plan, measure = tests[way.format("TLS" if settings["tls"] else "plain")]
        median, rounds = await alternate(ours, lambda: measure(plan), Test.figures, gate.rounds, on_round)
    judged = judge.judged(verb, rounds)
    judge.save()
    return median, judged
