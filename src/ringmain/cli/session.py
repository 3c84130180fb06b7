"""One run of a verb on the command line: signals, reports, progress, and what the user gets when it ends."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvloop

from ringmain import kernel
from ringmain._ring import Counters
from ringmain.connection import Connection
from ringmain.descriptor import Output, ReaderLeft, open_input, open_output
from ringmain.endpoint import Endpoint
from ringmain.errors import OutputError, reason
from ringmain.input_saver import InputSaver
from ringmain.loader import Loader, load
from ringmain.progress import show_progress
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

# After the first signal what is under way may go on for as long as it moves; standing still for this long ends it.
_GRACE = 2.0
# What a look at a verb shows: bytes in, bytes out, fullness of what is between them from 0 to 1.
Look = Callable[[], tuple[int, int, float]]
_TLS_OPTIONS = ("certfile", "keyfile", "cafile", "client_ca", "server_name", "ciphers", "insecure", "self_signed")
_REPORT_OPTIONS = ("port_file", "stats_file", "quiet", "verbose", "progress")


class Session:
    """What load and save have in common on the command line."""

    def __init__(self, endpoint: str, options: dict[str, Any]) -> None:
        report = {name: options.pop(name) for name in _REPORT_OPTIONS}
        options["family"] = options["family"] or 0
        self._port_file = report["port_file"]
        self._port_file_written = False
        self._stats_fd = _open_stats(report["stats_file"])
        terminal = sys.stderr.isatty()
        self._progress = terminal and not report["quiet"] if report["progress"] is None else report["progress"]
        self._announce = report["verbose"] or (terminal and not report["quiet"])
        self._signal = 0
        self.bytes_in = 0
        self.bytes_out = 0
        _set_up_log(report["quiet"], report["verbose"])
        self.tls = options["tls"] or Endpoint.parse(endpoint).tls
        if not self.tls:
            idle = [f"--{name.replace('_', '-')}" for name in _TLS_OPTIONS if options[name]]
            if idle:
                log.warning("%s: ignored without --tls, nothing is encrypted", ", ".join(idle))

    def moved(self, counters: Counters | None) -> tuple[int, int]:
        """Return the bytes in and out so far, those of the present connection included."""
        if counters is None:
            return self.bytes_in, self.bytes_out
        return self.bytes_in + counters.bytes_in, self.bytes_out + counters.bytes_out

    def run(self, work: Callable[[], Coroutine[Any, Any, None]], stop: Callable[[], bool], look: Look) -> int:
        """Run the verb's coroutine to its end; return the exit code."""
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        # An error leaves the loop as it is: closing it would wait for a name that is still being resolved, in a thread.
        code = runner.run(self._supervise(work, stop, look))
        if self._signal:
            sys.stderr.flush()
            os._exit(code)
        runner.close()
        return code

    async def _supervise(
        self, work: Callable[[], Coroutine[Any, Any, None]], stop: Callable[[], bool], look: Look
    ) -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work())

        def interrupt(number: int) -> None:
            if self._signal:
                self._remove_port_file()
                os._exit(128 + number)
            self._signal = number
            if not stop():
                task.cancel()
            else:
                helpers.append(asyncio.ensure_future(self._give_up(task, look)))

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt, number)
        helpers: list[asyncio.Task[None]] = []
        if self._progress:
            helpers.append(asyncio.ensure_future(show_progress(look)))
        try:
            await task
        except asyncio.CancelledError:
            if not self._signal:
                raise
        except ReaderLeft:
            pass
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return 128 + self._signal if self._signal else 0

    async def _give_up(self, task: "asyncio.Task[None]", look: Look) -> None:
        """End a run that was told to stop once it no longer moves."""
        moved, since = look()[:2], time.monotonic()
        while time.monotonic() - since < _GRACE:
            await asyncio.sleep(0.05)
            if look()[:2] != moved:
                moved, since = look()[:2], time.monotonic()
        log.warning("stopped with bytes under way: the other side takes nothing any more")
        task.cancel()

    @contextlib.contextmanager
    def announced(self, verb: Loader | InputSaver) -> Iterator[None]:
        """Say where the verb listens while it does, on stderr and in the port file."""
        if not verb.addresses:
            yield
            return
        if self._announce or verb.endpoint.port == "0":
            for address in verb.addresses:
                print(f"listening on {'tcps' if self.tls else 'tcp'}://{address}", file=sys.stderr, flush=True)
        if self._port_file is None:
            yield
            return
        _write_atomically(Path(self._port_file), f"{verb.port}\n")
        self._port_file_written = True
        try:
            yield
        finally:
            self._remove_port_file()

    def _remove_port_file(self) -> None:
        if self._port_file_written:
            Path(self._port_file).unlink(missing_ok=True)
            self._port_file_written = False

    def record(self, connection: Connection, counters: Counters, size: int, verdict: str, refused: int) -> None:
        """Append a connection's figures to the stats file; `refused` counts the clients turned away so far."""
        self.bytes_in += counters.bytes_in
        self.bytes_out += counters.bytes_out
        if self._stats_fd is None:
            return
        row = {
            "peer": connection.peer,
            "tls": connection.tls_version,
            "cipher": connection.cipher,
            "bytes": size,
            "seconds": round(max(0.0, (counters.ended or time.monotonic()) - counters.started), 6),
            "reads": counters.reads,
            "blocks": counters.blocks,
            "writes": counters.writes,
            "stalls": counters.stalls,
            "refused": refused,
            "stalled_seconds": round(counters.stalled_seconds, 6),
            "verdict": verdict,
        }
        try:
            os.write(self._stats_fd, json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise OutputError("write the stats file", reason(error), "choose another --stats-file") from error


def run_load(endpoint: str, output: str, path: str, **options: Any) -> int:
    """Run `ringmain load`; return the exit code."""
    session = Session(endpoint, options)
    loader = load(endpoint, **options)
    sink = open_output(output)
    kernel.may_pump(path, sink, tls=session.tls)

    def on_end(connection: Connection, counters: Counters, verdict: str) -> None:
        session.record(connection, counters, counters.bytes_in, verdict, loader.refused)

    def look() -> tuple[int, int, float]:
        return *session.moved(loader.counters), loader.fullness

    async def work() -> None:
        loader.on_end = on_end
        moving = asyncio.ensure_future(_load_to(session, loader, sink, path))
        leaving = asyncio.ensure_future(sink.reader_left())
        try:
            await asyncio.wait([moving, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (moving, leaving):
                task.cancel()
            await asyncio.wait([moving, leaving])
            sink.close()
        if not moving.cancelled():
            moving.result()

    return session.run(work, loader.stop, look)


async def _load_to(session: Session, loader: Loader, sink: Output, path: str) -> None:
    async with loader:
        with session.announced(loader):
            await loader.copy_to(sink, path)


def run_save(endpoint: str, input_: str, path: str, *, listen: bool, listen_once: bool, **options: Any) -> int:
    """Run `ringmain save`; return the exit code."""
    session = Session(endpoint, options)
    settings = Settings(**options)
    saver = InputSaver(Endpoint.parse(endpoint), settings, listen=listen, listen_once=listen_once)
    source = open_input(input_)
    kernel.may_pump(path, source, tls=session.tls)

    def on_end(connection: Connection, counters: Counters, verdict: str) -> None:
        session.record(connection, counters, counters.bytes_out, verdict, saver.refused)

    def look() -> tuple[int, int, float]:
        bytes_in, bytes_out = session.moved(saver.counters)
        return bytes_in, bytes_out - saver.unacknowledged_bytes, saver.fullness

    async def work() -> None:
        saver.on_end = on_end
        try:
            async with saver:
                with session.announced(saver):
                    await saver.copy_from(source, path)
        finally:
            source.close()

    def stop() -> bool:
        source.stop()
        return saver.stop()

    return session.run(work, stop, look)


def _open_stats(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"open {path}", reason(error), "choose another --stats-file") from error


def _write_atomically(path: Path, text: str) -> None:
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(fd, "w") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise OutputError(f"write {path}", reason(error), "choose another --port-file") from error


def _set_up_log(quiet: bool, verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ringmain: %(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
