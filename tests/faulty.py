"""A run of a verb through faults: what is drawn from its seed, and the verb in this process or as a program."""

import asyncio
import random
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import witness
from conftest import Certificates
from faults import Way

import ringmain

IDLE = 1.0  # seconds, where a stall is to be noticed


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
