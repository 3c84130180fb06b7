"""All streams of one end of a measurement, in this process or in several."""

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ringmain._counters import Counters
from ringmain.bench import engines, reference
from ringmain.bench.meter import Meter, joined, joined_interval
from ringmain.bench.plan import MAX_MESSAGE, Plan
from ringmain.bench.result import described
from ringmain.bench.tcp_info import congestion
from ringmain.errors import ReceiveError, RingmainError, reason
from ringmain.net.dial import shake_hands
from ringmain.net.failures import failure_of
from ringmain.net.link import Link
from ringmain.settings import Settings

OnInterval = Callable[[dict[str, Any]], None]
Ready = Callable[[], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class End:
    """One end of a measurement: its streams are `sending` or receive, under the TLS of `settings` if `tls`.

    `peer` is what errors call the other end.
    """

    plan: Plan
    settings: Settings
    peer: str
    host: str | None  # what the client wants the certificate to name; None at the server
    sending: bool
    tls: bool

    async def run(self, socks: list[socket.socket], ready: Ready, on_interval: OnInterval) -> dict[str, Any]:
        """Move the bytes of all streams, whose sockets are closed then; return the figures of this side.

        Several streams are divided between as many processes as there are cores, or fewer, so that none has more than
        another, nor their messages together take more memory than one may.
        `ready` is awaited once all have shaken hands: it returns when the other side is ready too.
        """
        most = min(len(os.sched_getaffinity(0)), MAX_MESSAGE // self.plan.message_size)
        count = len(socks) if self.plan.processes else evenly(len(socks), most)
        if count == 1 and not self.plan.processes:
            return await self.run_here(socks, ready, on_interval)
        each = len(socks) // count
        start, intervals = _Start(count, ready), _Intervals([each] * count, on_interval)
        with contextlib.ExitStack() as stack:
            for sock in socks:
                stack.callback(sock.close)
            files, settings = [], self.settings
            if self.tls and self.host is None and settings.self_signed:
                from ringmain.net.own_certificate import self_signed_file

                files.append(self_signed_file())
                stack.callback(os.close, files[0])
                settings = dataclasses.replace(settings, **_of_file(files[0]))
            works = []
            for at in range(count):
                end = dataclasses.replace(self, plan=self.plan.share(at * each, each), settings=settings)
                works.append(_in_process(end, socks[at * each :][:each], files, start.wait, intervals, at))
            sides = await together(works)
        return {**joined(sides), "streams": [stream for side in sides for stream in side["streams"]]}

    async def run_here(self, socks: list[socket.socket], ready: Ready, on_interval: OnInterval) -> dict[str, Any]:
        """Do so in this process."""
        opened: dict[int, Link] = {}
        try:
            await together([self._connect(sock, opened, at) for at, sock in enumerate(socks)])
            links = [opened[at] for at in range(len(socks))]
            streams = [described(link) for link in links]
            algorithm = congestion(links[0].sock)
            await ready()
            side = await self._move(links, on_interval)
        except OSError as error:
            raise error if isinstance(error, RingmainError) else self._broken(error) from error
        finally:
            for link in opened.values():
                link.close()
            for sock in socks:
                sock.close()
        return {**side, "streams": streams, "congestion": algorithm}

    def _broken(self, error: OSError) -> RingmainError:
        what = f"bench with {self.peer}"
        return failure_of(error, what) if self.sending else ReceiveError(what, reason(error), "see the other end's log")

    async def _move(self, links: list[Link], on_interval: OnInterval) -> dict[str, Any]:
        meter = Meter(self.plan.interval, self.plan.omit, sending=self.sending)
        meter.on_interval = on_interval
        if self.sending:
            meter.socks = [link.sock for link in links]
        engine = reference if self.plan.engine == "reference" else engines
        move = engine.send if self.sending else engine.receive
        # All streams send the same bytes: many long messages of a stranger's choice would fill the memory.
        payload = memoryview(os.urandom(self.plan.message_size if self.sending else 0))

        def counted(counters: Counters) -> Meter:
            meter.counters.append(counters)
            if len(meter.counters) == len(links):
                meter.start(len(links))
            return meter

        try:
            await together([move(self.plan.share(at), link, payload, counted, at) for at, link in enumerate(links)])
        finally:
            meter.close()
        return meter.side()

    async def _connect(self, sock: socket.socket, opened: dict[int, Link], position: int) -> None:
        """Shake hands, if that is wanted, and add the link."""
        if self.tls:
            from ringmain.net.tls import client_context, server_context

            # What deserves a warning was told for the connection that has asked for these.
            context = (server_context if self.host is None else client_context)(self.settings, again=True)
            name = self.host and (self.settings.server_name or self.host)
            sock = await shake_hands(sock, context, self.settings, self.peer, name)
        opened[position] = Link(sock, self.peer)


def evenly(streams: int, most: int) -> int:
    """Return between how many processes, `most` of them, streams can be divided so that each process has as many."""
    return next(count for count in range(max(1, min(most, streams)), 0, -1) if streams % count == 0)


async def together(works: list[Any]) -> list[Any]:
    """Await all; when one fails, cancel the others and raise its error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Start:
    """Lets all streams begin once each is ready, and the other side as well."""

    def __init__(self, count: int, ready: Ready) -> None:
        self._missing = count
        self._ready = ready
        self._go = asyncio.Event()

    async def wait(self) -> None:
        """Return when it begins."""
        self._missing -= 1
        if self._missing == 0:
            await self._ready()
            self._go.set()
        await self._go.wait()


class _Intervals:
    """Passes an interval on once every process, with so many `streams` each, has told its own, or has ended."""

    def __init__(self, streams: Sequence[int], on_interval: OnInterval) -> None:
        self._streams = streams
        self._waiting: list[list[dict[str, Any]]] = [[] for _ in streams]
        self._ended = [False] * len(streams)
        self._on_interval = on_interval

    def add(self, position: int, interval: dict[str, Any]) -> None:
        """Take an interval of a process."""
        self._waiting[position].append(interval)
        self._pass_on()

    def end(self, position: int) -> None:
        """Wait for no more of a process; its streams count as those that bring nothing."""
        self._ended[position] = True
        self._pass_on()

    def _pass_on(self) -> None:
        while any(self._waiting) and all(
            waiting or ended for waiting, ended in zip(self._waiting, self._ended, strict=True)
        ):
            self._on_interval(
                joined_interval(
                    [
                        queue.pop(0) if queue else {"sizes": [0] * streams}
                        for queue, streams in zip(self._waiting, self._streams, strict=True)
                    ]
                )
            )


def _of_file(fd: int) -> dict[str, Any]:
    """Return the settings of a process that takes its certificate and key from a file that it inherits."""
    path = f"/proc/self/fd/{fd}"
    return {"self_signed": False, "certfile": path, "keyfile": None, "key_password_file": None}


async def _in_process(
    end: End, socks: list[socket.socket], files: list[int], ready: Ready, intervals: _Intervals, position: int
) -> dict[str, Any]:
    """Run some streams in a process of their own, which inherits `files` as well."""
    fds = [sock.fileno() for sock in socks]
    task = {**dataclasses.asdict(end), "plan": end.plan.message(), "settings": dataclasses.asdict(end.settings)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # else a module of the working directory takes the place of one of ours
        "-m",
        "ringmain.bench.worker",
        *map(str, fds),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[*fds, *files],
        start_new_session=True,  # a terminal's ^C is for the parent alone
        limit=1 << 26,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        async for line in process.stdout:
            message = json.loads(line)
            if "ready" in message:
                await ready()
                process.stdin.write(b"go\n")
            elif "interval" in message:
                intervals.add(position, message["interval"])
            elif "error" in message:
                raise _WorkerError(message["error"], message["exit_code"])
            else:
                intervals.end(position)
                return dict(message["side"])
        raise _WorkerError("a process of the measurement has ended before its streams; see standard error", 1)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    finally:
        process.stdin.close()
        await process.wait()


class _WorkerError(RingmainError):
    """What went wrong in a process of its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _keep_apart(*, at_server: bool) -> None:
    """Leave half of the cores to the other end: who shares a core would else be chance, and half the speed."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if half:
        os.sched_setaffinity(0, cores[:half] if at_server else cores[half:])


async def serve_parent(fds: list[int]) -> None:
    """Run the streams that a parent has told of on standard input, on the sockets it has left open."""
    loop = asyncio.get_running_loop()
    task = json.loads(sys.stdin.buffer.readline())
    end = End(**{**task, "plan": Plan(**task["plan"]), "settings": Settings(**task["settings"])})
    if end.plan.apart:
        _keep_apart(at_server=end.host is None)
    socks = [socket.socket(fileno=fd) for fd in fds]
    for sock in socks:
        sock.setblocking(False)
    go = asyncio.Event()

    def hear() -> None:
        if not os.read(0, 1 << 10):  # the parent is gone, or wants no more
            os._exit(1)
        go.set()

    def say(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    async def ready() -> None:
        say({"ready": True})
        await go.wait()

    loop.add_reader(0, hear)
    try:
        say({"side": await end.run_here(socks, ready, lambda interval: say({"interval": interval}))})
    except RingmainError as error:
        say({"error": str(error), "exit_code": error.exit_code})
