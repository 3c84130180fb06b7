"""Every verb through a proxy that injects faults, in 300 random runs: a failure tells the seed of its run.

`RINGMAIN_FAULT_SEEDS="7 8"` runs those seeds instead. What is held: what arrives is a prefix of what was sent; what
ends properly is whole; where nothing befell a connection all is well; and the exit code is the table's. The verbs run
in this process, on both loops, and as the command line does.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import faults
import peers
import pytest
import witness
from conftest import Certificates
from faults import Way
from faulty import Case, Program, Verb

Run = Callable[..., Any]
RUNS_IN_PROCESS, RUNS_OF_PROGRAMS = 20, 10  # for each of 12 and of 6 combinations
AT_ONCE = 10
LIMIT = 300.0  # seconds, for all runs of a test: they are many small steps, and the machine may have other work
pytestmark = pytest.mark.timeout(LIMIT + peers.TIMEOUT)


async def carry_out(case: Case, verb: Verb) -> None:
    """Run a case, and hold what came of it."""
    sent, expected = (case.data, 0) if case.verb == "load" else (b"", len(case.data))
    if case.verb != "relay" and case.listening:
        async with running_beside(verb, 0) as running, through_proxy(case, 0, await verb.port) as port:
            client = await witness.connect(port, case.context(0, server=False))
            await client.exchange(sent, expected)
            code = await with_a_clean_client(case, verb, running, expected)
        witnesses = [client]
    elif case.verb != "relay":
        async with (
            witness.serving(case.context(0, server=True), sent, expected) as (port, witnesses),
            through_proxy(case, 0, port) as port,
        ):
            code = await verb.run(port)
    else:
        async with (
            witness.serving(case.context(1, server=True), case.answer, expected) as (port, witnesses),
            through_proxy(case, 1, port) as port,
            running_beside(verb, port) as running,
            through_proxy(case, 0, await verb.port) as port,
        ):
            client = await witness.connect(port, case.context(0, server=False))
            await client.exchange(case.data, len(case.answer))
            code = await with_a_clean_client(case, verb, running, len(case.answer))
    if case.verb == "load":
        judge_load(case, code, bytes(verb.output))
    elif case.verb == "save":
        judge_save(case, code, case.clean or witnesses[0] if witnesses or case.clean else None)
    else:
        judge_relay(case, code, client, witnesses)


@contextlib.asynccontextmanager
async def running_beside(verb: Verb, port: int) -> AsyncIterator["asyncio.Task[int]"]:
    running = asyncio.ensure_future(verb.run(port))
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def through_proxy(case: Case, position: int, port: int) -> contextlib.AbstractAsyncContextManager[int]:
    """Stand a proxy before a port; the ways are seen from who dials, the bytes of interest go either way."""
    there, back = case.links[position]
    with_bytes = case.verb == "relay" or (case.verb == "load") == case.listening
    return faults.proxy(port, *((there, back) if with_bytes else (back, there)))


async def with_a_clean_client(case: Case, verb: Verb, running: "asyncio.Task[int]", expected: int) -> int:
    """Return the exit code. Where the first client did not count, the verb waits for another: here it comes."""
    data = b"" if case.verb == "save" else case.second

    async def come() -> None:
        client = await witness.connect(await verb.port, case.context(0, server=False))
        case.clean = client
        case.second_came = True
        await client.exchange(data, expected)

    coming = asyncio.ensure_future(come())
    try:
        await asyncio.wait([running])
        if not running.exception() and coming.done() is False and case.clean is not None:
            await asyncio.wait([coming], timeout=0.2 if not case.clean.received else peers.TIMEOUT)
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        if case.clean is not None:
            case.clean.sock.close()
            if case.clean.end not in ("fin", "close_notify"):
                case.clean = None
    return running.result()


def judge_load(case: Case, code: int, got: bytes) -> None:
    there, _ = case.links[0]
    if code == 0 and got == case.second:
        assert case.fired, "the first client was not counted"
        return
    whole = case.data
    if code == 0 and there.fault == "cut" and there.fired and not case.tls:  # a FIN is a proper end
        whole = case.data[: there.passed]
    assert got == case.data[: len(got)], "what arrived is no prefix"
    assert code != 0 or got == whole, f"{len(got)} of {len(whole)} bytes pass for all"
    if not case.fired:
        assert code == 0
    assert code in allowed(case, {"reset": {56}, "cut": set(), "stall": {28, 56}}), f"exit code {code}"


def judge_save(case: Case, code: int, receiver: witness.Witness | None) -> None:
    there, _ = case.links[0]
    got, end = (bytes(receiver.received), receiver.end) if receiver is not None else (b"", None)
    if receiver is not None:
        judge_receiver(receiver, case.data, [] if receiver is case.clean else [(there, case.versions[0])])
    if not case.fired:
        assert (code, end in ("fin", "close_notify")) == (0, True), f"exit code {code}, ended by {end}"
    if code == 0 and got != case.data:
        assert case.fired, "success, but not all arrived"
        if "reset" in case.fired:
            assert len(case.data) - there.passed <= faults.HELD, "success, but the peer's kernel cannot have had it all"
    assert code in allowed(case, {"reset": {0, 55}, "cut": {0, 55}, "stall": {0, 28, 55}}), f"exit code {code}"


def judge_relay(case: Case, code: int, client: witness.Witness, servers: list[witness.Witness]) -> None:
    forth, back = [link[0] for link in case.links], [link[1] for link in case.links]
    judge_receiver(client, case.answer, list(zip(back, case.versions, strict=True))[::-1])
    for server in servers:
        # The second client may be cut off, too, when the relay ends because of the first.
        second = case.second_came and server.received and case.second.startswith(server.received)
        if server is servers[-1] and (case.clean is not None or second):
            judge_receiver(server, case.second, [])
        else:
            judge_receiver(server, case.data, list(zip(forth, case.versions, strict=True)))
    if not case.fired:
        assert code == 0
        assert len(servers) == 1
        assert {client.end, servers[0].end} <= {"fin", "close_notify"}
    codes = {"reset": {0, 55, 56}, "cut": {0, 55, 56}, "stall": {0, 28, 55, 56}}
    assert code in allowed(case, codes), f"exit code {code}"


def judge_receiver(receiver: witness.Witness, data: bytes, ways: list[tuple[Way, str | None]]) -> None:
    """Hold what a witness was sent by way of ringmain: a prefix, and whole where it ended properly.

    A FIN that is injected into a plain stream ends it as properly as any.
    """
    got = bytes(receiver.received)
    assert got == data[: len(got)], f"what arrived ({len(got)} bytes) is no prefix"
    if receiver.end in ("fin", "close_notify"):
        cuts = [way.passed for way, version in ways if way.fired and way.fault == "cut" and version is None]
        whole = min([len(data), *cuts])
        assert len(got) == whole, f"{len(got)} of {whole} bytes, with a proper end"


def allowed(case: Case, codes: dict[str, set[int]]) -> set[int]:
    """Return the exit codes that a run may end with, from those that each fault may cause on a plain connection."""
    tls = {"reset": {0, 35, 56}, "cut": {0, 18, 35}, "stall": {0, 18, 28, 35, 56}}
    return {0}.union(*(codes[it] | (tls[it] if case.tls else set()) for it in case.fired))


def seeds(count: int) -> list[int]:
    given = os.environ.get("RINGMAIN_FAULT_SEEDS")
    return [int(it) for it in given.split()] if given else [random.randrange(1 << 31) for _ in range(count)]


async def carry_out_all(kind: type[Verb], count: int, *of_case: Any) -> None:
    """Carry out cases of random seeds, several at once; fail with the seeds and what is wrong with each."""
    free, wrong = asyncio.Semaphore(AT_ONCE), []

    async def one(seed: int) -> None:
        case = Case(seed, *of_case)
        async with free:
            try:
                async with asyncio.timeout(peers.TIMEOUT):
                    await carry_out(case, kind(case))
            except (AssertionError, TimeoutError, OSError) as error:
                wrong.append(
                    f"seed {seed}: {type(error).__name__} {error}\n    {case.verb} {case.versions} {case.links}"
                )

    await asyncio.gather(*(one(seed) for seed in seeds(count)))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_through_faults_what_arrives_is_a_prefix_and_what_ends_properly_is_whole(
    run: Run, certificates: Certificates, tmp_path: Path, verb: str, tls: bool
) -> None:
    run(carry_out_all(Verb, RUNS_IN_PROCESS, verb, certificates, tls, tmp_path), LIMIT)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_through_faults_the_exit_code_tells_what_happened(
    certificates: Certificates, tmp_path: Path, verb: str, tls: bool
) -> None:
    asyncio.run(carry_out_all(Program, RUNS_OF_PROGRAMS, verb, certificates, tls, tmp_path))


@pytest.mark.parametrize(("fault", "end"), [("reset", "reset"), ("cut", "fin"), ("stall", "reset"), (None, "fin")])
def test_the_proxy_passes_on_exactly_what_comes_before_a_fault(run: Run, fault: str | None, end: str) -> None:
    data = peers.payload(200_000)

    async def one(way: Way) -> bytes:
        async with witness.serving(None, b"", len(data)) as (port, servers), faults.proxy(port, way, Way()) as port:
            client = await witness.connect(port)
            await client.exchange(data)
        (server,) = servers
        assert server.end == end
        return bytes(server.received)

    async def all_of_them() -> None:
        ways = [Way(piece=7000, shreds=(500, 900), delays=(0, 3000), fault=fault, at=at) for at in (0, 700, 150_001)]
        for way, got in zip(ways, await asyncio.gather(*map(one, ways)), strict=True):
            assert got == (data if fault is None else data[: way.at])

    run(all_of_them())
