"""Every verb through a proxy that injects faults, in 300 random runs: a failure tells the seed of its run.

`RINGMAIN_FAULT_SEEDS="7 8"` runs those seeds instead. What is held: what arrives is a prefix of what was sent; what
ends properly is whole; where nothing befell a connection all is well; and the exit code is the table's. The verbs run
in this process, on both loops, and as the command line does.
"""

import asyncio
import contextlib
import os
import random
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import peers
import pytest
import witness
from conftest import Certificates
from faults import Way

import ringmain

Run = Callable[..., Any]
RUNS_IN_PROCESS, RUNS_OF_PROGRAMS = 20, 10  # for each of 12 and of 6 combinations
AT_ONCE = 10
IDLE = 1.0  # seconds, where a stall is to be noticed
LIMIT = 300.0  # seconds, for all runs of a test: they are many small steps, and the machine may have other work
pytestmark = pytest.mark.timeout(LIMIT + peers.TIMEOUT)


@dataclass
class Case:
    """One run: what is drawn from its seed, and what came of it."""

    seed: int
    verb: str
    certificates: Certificates
    tls: bool
    folder: Path
    draw: random.Random = field(init=False)
    versions: list[str | None] = field(init=False)  # of TLS, of each link that the bytes go over
    links: list[tuple[Way, Way]] = field(init=False)  # with the bytes, and against them

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.seed} {self.verb} {self.tls}")
        self.listening = self.draw.random() < 0.5  # ringmain does, where it has but one end
        # A saver that never writes waits for no client; the server behind a relay says goodbye once it has that much.
        size = self.draw.choice([0 if self.verb == "load" else 2, 1, 1000, 70_000, 300_000, 1_000_000])
        self.data = peers.payload(size, self.seed)
        # What a client brings that comes after one that did not count: as much, and other bytes from the first one on.
        self.second = self.data.translate(bytes(range(255, -1, -1))) or b"x"
        self.answer = peers.payload(self.draw.choice([0, 0, 1, 100_000]), 3) if self.verb == "relay" else b""
        count = 2 if self.verb == "relay" else 1
        encrypted = self.draw.choice([[True, True], [True, False], [False, True]]) if self.tls else [False, False]
        self.versions = [self.draw.choice(["1.2", "1.3"]) if it else None for it in encrypted[:count]]
        self.versions = [self.draw.choice(["1.2", "1.3"])] if self.tls and count == 1 else self.versions
        wanted = self.draw.choice([[], ["reset"], ["cut"], ["reset", "cut", "stall"]])
        place = self.draw.randrange(10)  # most faults befall the bytes that are to arrive
        self.links = []
        for position, version in enumerate(self.versions):
            here = position == (place // 4 % count)
            more = 3000 if version else 0
            there = Way.drawn(self.draw, size + more, wanted if here and place != 9 else [])
            back = Way.drawn(self.draw, len(self.answer) + more, wanted if here and place == 9 else [])
            self.links.append((there, back))
        self.ways = [way for link in self.links for way in link]
        self.idle_timeout = IDLE if any(way.fault == "stall" for way in self.ways) else None
        self.clean: witness.Witness | None = None
        self.second_came = False

    @property
    def fired(self) -> set[str]:
        """What befell a connection; where stalls are to be noticed soon, a busy machine may look like one."""
        return {way.fault or "" for way in self.ways if way.fired} | ({"stall"} if self.idle_timeout else set())

    def context(self, position: int, *, server: bool) -> ssl.SSLContext | None:
        """Return the context of the witness at a link's other end, or None where it is plain."""
        version = self.versions[position]
        if version is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
        if server:
            context.load_cert_chain(self.certificates.server)
        else:
            context.load_verify_locations(self.certificates.ca)
        return context

    def options(self, position: int, *, listening: bool) -> dict[str, Any]:
        """Return what ringmain is told of TLS at its end of a link."""
        if self.versions[position] is None:
            return {}
        certificates = self.certificates
        return {"certfile": str(certificates.server)} if listening else {"cafile": str(certificates.ca)}

    def url(self, position: int, port: int) -> str:
        return f"{'tcp' if self.versions[position] is None else 'tcps'}://127.0.0.1:{port}"


class Verb:
    """A verb under test, as a library: runs it to its exit code."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.output = bytearray()
        self.port = asyncio.get_running_loop().create_future()

    async def run(self, port: int) -> int:
        """Run the verb; port: where it dials, if it does."""
        case = self.case
        try:
            await getattr(self, case.verb)(port)
        except ringmain.RingmainError as error:
            return error.exit_code
        finally:
            if not self.port.done():
                self.port.cancel()
        return 0

    def timeouts(self) -> dict[str, Any]:
        limit = self.case.idle_timeout
        if limit is None:
            return {"handshake_timeout": peers.TIMEOUT}  # which delays on a busy machine do not use up
        return {"idle_timeout": limit, "handshake_timeout": limit}

    async def load(self, port: int) -> None:
        case = self.case
        how: dict[str, Any] = {"listen_once": True} if case.listening else {"connect": True}
        how |= case.options(0, listening=case.listening) | self.timeouts()
        async with ringmain.load(case.url(0, 0 if case.listening else port), **how) as loader:
            if case.listening:
                self.port.set_result(loader.port)
            async for block in loader:
                self.output += block
                block.release()

    async def save(self, port: int) -> None:
        case = self.case
        how = case.options(0, listening=case.listening) | self.timeouts()
        async with ringmain.save(
            case.url(0, 0 if case.listening else port), listen_once=case.listening, **how
        ) as saver:
            if case.listening:
                self.port.set_result(saver.port)
            offset = 0
            while offset < len(case.data):
                size = case.draw.choice([10, 5000, 200_000])
                await saver.write(case.data[offset : offset + size])
                offset += size

    async def relay(self, port: int) -> None:
        case = self.case
        source, destination = case.options(0, listening=True), case.options(1, listening=False)
        async with ringmain.relay(
            case.url(0, 0),
            case.url(1, port),
            listen_once=True,
            source_tls=ringmain.TlsSettings(**source),
            destination_tls=ringmain.TlsSettings(**destination),
            **self.timeouts(),
        ) as relayer:
            self.port.set_result(relayer.port)
            await relayer.serve()


class Program(Verb):
    """The same on the command line."""

    async def run(self, port: int) -> int:
        case = self.case
        with tempfile.TemporaryDirectory(dir=case.folder) as name:
            folder = Path(name)
            (folder / "input").write_bytes(case.data)
            port_file, output = folder / "port", folder / "output"
            with (folder / "input").open("rb") as source, output.open("wb") as sink, (folder / "log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *peers.RINGMAIN, *self.arguments(port, port_file), stdin=source, stdout=sink, stderr=log
                )
                try:
                    while process.returncode is None and not self.port.done():
                        if port_file.exists():
                            self.port.set_result(int(port_file.read_text()))
                        await asyncio.sleep(0.01)
                    code = await process.wait()
                finally:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()
                    if not self.port.done():
                        self.port.cancel()
            self.output += output.read_bytes()
            words = (folder / "log").read_text()
            assert "Traceback" not in words, words
            return code

    def arguments(self, port: int, port_file: Path) -> list[str]:
        case, verb = self.case, self.case.verb
        flags = [f"--{name.replace('_', '-')}={value}s" for name, value in self.timeouts().items()]
        if verb == "relay":
            for position, end in enumerate(("source", "destination")):
                given = case.options(position, listening=end == "source")
                flags += [f"--{end}-{name}={value}" for name, value in given.items()]
            return [verb, "-o", f"--port-file={port_file}", *flags, case.url(0, 0), case.url(1, port)]
        flags += [f"--{name}={value}" for name, value in case.options(0, listening=case.listening).items()]
        if case.listening:
            return [verb, "-o", f"--port-file={port_file}", *flags, case.url(0, 0)]
        return [verb, *(["--connect"] if verb == "load" else []), *flags, case.url(0, port)]


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
