"""`ringmain load --processes P`: this process accepts, and hands each connection to the one with the fewest.

One gate, one stats file, one port file, and whatever signals say, are of this process. The others (`worker`) shake
hands, receive and write, each to an output of its own, since a pipe that several write to would mix their records. They
end with this one: at the latest when the channel between them is closed.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import ringmain
from ringmain.cli.metrics import KINDS, Told, summed, told_of_clients, told_of_files
from ringmain.cli.other_process import Process
from ringmain.cli.renewal import Renewal
from ringmain.cli.session import Session
from ringmain.cli.signals import Signals
from ringmain.cli.stats import lost_with_its_process, unserved
from ringmain.cli.summary import Blame
from ringmain.cli.template import Template
from ringmain.cli.tls import uses_tls
from ringmain.endpoint import Endpoint
from ringmain.errors import OutputError, RingmainError, UsageError
from ringmain.flow.resuming import Mark
from ringmain.net.dial import context_for
from ringmain.net.gate import Gate, NoMoreClients, listen
from ringmain.net.introduced import Introduced
from ringmain.net.own_certificate import piped_passwords
from ringmain.net.readiness import finish
from ringmain.net.reception import spoken
from ringmain.net.renewable import Renewable
from ringmain.outcome import Unserved
from ringmain.progress import progress_line
from ringmain.waiting import let_go

log = logging.getLogger("ringmain")

# A process that dies is replaced, but not more often than this.
_PAUSE = 1.0
# How a process ends that was told to.
_TOLD = 128 + signal.SIGTERM


class _Signals(Signals):
    """Signals stop the processes, each of which gives up what no longer moves: here that is not judged once more."""

    def watch(self, task: "asyncio.Task[None]", stop: Callable[[], bool], _: Callable[[], object]) -> None:
        """Call `stop` at the first one."""
        super().watch(task, stop, time.monotonic)


class Processes:
    """A run of `ringmain load` in several processes."""

    gate: Gate

    def __init__(
        self,
        endpoint: str,
        output: str,
        path: str,
        option: str,
        count: int,
        session: Session,
        options: dict[str, Any],
        *,
        append: bool,
    ) -> None:
        """Raise UsageError for what several processes cannot do."""
        self._output = Template(output, option)
        _check(f"--processes {count}", self._output, output, session, count, options)
        self._tls = uses_tls(Endpoint.parse(endpoint), options)
        loader = ringmain.load(endpoint, **options)  # which checks the rest
        self._endpoint, self._settings = loader.endpoint, loader.settings
        session.check_reloading(*([loader.settings] if self._tls else []))
        self._context: Renewable | None = None
        self._count = count
        self._session = session
        self._task = {"endpoint": endpoint, "path": path, "option": option, "append": append, **options}
        self._task |= {**session.loudness, "progress": True, "tells_figures": session.has_metrics}
        self._names: dict[int, str] = {}  # of their outputs, as they are to be
        self._opened: dict[int, str] = {}  # and as they are
        self._task["delimiter"] = options["delimiter"].decode("latin-1")
        self._workers: dict[int, Process] = {}
        self._gone = (0, 0)  # what those have moved that have died
        self._told: Told = {}  # what they have counted
        self._renewal = Renewal([self], [self._reopen])
        self._numbers = itertools.count(1)
        self._all_ready: asyncio.Future[None] | None = None
        self._began = self._stopping = False
        self._failed_starts = 0  # in a row
        self._error: Exception | None = None

    def run(self) -> int:
        """Serve clients until a signal comes; return the exit code."""
        blame = Blame("whoever reads the output", "the peers or the disk", lanes=self._count)
        return self._session.run(
            self._work,
            self._stop,
            self._look,
            self._line,
            signals=_Signals(self._leave),
            renewal=self._renewal,
            figures=self._figures,
            blame=lambda: blame,
        )

    def reload_certificates(self) -> None:
        """Let all read them again, unless something is wrong with them: whoever starts later does so anyway."""
        if self._context is not None:
            self._context.renew()
            for worker in self._workers.values():
                worker.channel.send({"certificates": True})

    @property
    def certificates_changed(self) -> bool:
        """Whether they are other files by now."""
        return self._context is not None and self._context.has_changed

    def _reopen(self) -> None:
        """Let each go on in the file that has its name now."""
        for number, worker in self._workers.items():
            self._names[number] = self._output.name(process=number)
            worker.channel.send({"output": self._names[number]})

    def record(self, row: dict[str, Any]) -> None:
        """Write the row of a connection."""
        self._session.account.record({**row, "refused": self.gate.unserved.refused}, 0, 0)

    def _record_failed(self, peer: str, seconds: float, error: Exception, verdict: str) -> None:
        """Write the row of a client that never got as far as one of the processes."""
        self.record(unserved(peer, seconds, error, verdict))

    def opened(self, worker: Process, name: str) -> None:
        """Hear which file a process goes on in: one that takes its place does so there."""
        self._opened[worker.number] = name

    def became_ready(self, worker: Process) -> None:
        """Let a process begin, or all, once all can."""
        self._failed_starts = 0
        self._changed.set()
        if self._names[worker.number] != self._opened[worker.number]:
            worker.channel.send({"output": self._names[worker.number]})
        if self._began:
            worker.channel.send({"go": True})
        elif self._all_ready is not None and self._count == sum(it.serves for it in self._workers.values()):
            finish(self._all_ready)

    async def _work(self) -> None:
        self._context = context_for(self._endpoint, self._settings, listening=True)  # tells what is wrong with a file
        self.gate = await listen(self._endpoint, self._settings)
        self.gate.on_failed = self._record_failed
        self._changed = asyncio.Event()
        self._all_ready = asyncio.get_running_loop().create_future()
        keeping = [asyncio.ensure_future(self._keep(number)) for number in range(1, self._count + 1)]
        try:
            await self._serve(self._all_ready, keeping)
        except Exception as error:  # what was acknowledged is written all the same
            self._fail(error)
        finally:
            await let_go(keeping)
            self.gate.close()
        if self._error is not None:
            raise self._error

    async def _serve(self, all_ready: "asyncio.Future[None]", keeping: "list[asyncio.Task[None]]") -> None:
        """Let the processes begin once all can, and hand clients to them until they have ended."""
        await all_ready
        if self._stopping:
            return
        with self._session.announced((self.gate, self._endpoint, self._tls)):
            self._began = True
            for worker in self._workers.values():
                worker.channel.send({"go": True})
            await self._hand_out()
            await let_go(keeping)

    async def _until_spoken(self, sock: socket.socket, peer: str) -> Introduced:
        """Wait for the first words of a handshake that another process goes on with: who is silent has no place."""
        await spoken(sock, peer, self._settings)
        return Introduced(peer)

    async def _hand_out(self) -> None:
        """Hand each client to the process that serves the fewest, until no other is to come."""
        preface = self._until_spoken if self._tls else None
        while True:
            try:
                link = await self.gate.next_connection(None, preface)
            except NoMoreClients:
                return
            try:
                worker = await self._next_worker()
            except BaseException:
                link.reset()
                raise
            if worker is None:
                link.reset()
                return
            worker.take(next(self._numbers), link, self.gate)

    async def _next_worker(self) -> Process | None:
        """Return the process with the fewest, once there is one; None if there is to be none."""
        while not self._stopping:
            if ready := [it for it in self._workers.values() if it.serves]:
                return min(ready, key=lambda it: (len(it.guests), it.number))
            self._changed.clear()
            await self._changed.wait()
        return None

    async def _keep(self, number: int) -> None:
        """Run a process, and another one whenever it dies."""
        try:
            self._names[number] = self._opened[number] = self._output.name(process=number)
            with os.fdopen(os.memfd_create("ringmain-task"), "wb") as memory:
                memory.write(Mark.UNSET)
                while not self._stopping:
                    memory.seek(Mark.SIZE)
                    memory.truncate()
                    memory.write(json.dumps(self._task_of(number)).encode())
                    memory.flush()
                    started = time.monotonic()
                    await self._run_one(number, memory.fileno())
                    while not self._stopping and (left := started + _PAUSE - time.monotonic()) > 0:
                        await self._pause(left)
        except Exception as error:  # of a process; or there is no memory, no descriptor
            self._fail(error)

    def _task_of(self, number: int) -> dict[str, Any]:
        """Return what a process is to do; passwords only it and we can see, since it is in memory that has no name."""
        passwords = {path: line.decode("latin-1") for path, line in piped_passwords.items()}
        return {**self._task, "output": self._opened[number], "passwords": passwords}

    def _fail(self, error: Exception) -> None:
        """End the run with an error, unless there is one already."""
        self._error = self._error or error
        self._stop()

    async def _pause(self, seconds: float) -> None:
        """Wait, unless something happens meanwhile."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may swallow a cancellation
                await self._changed.wait()

    async def _run_one(self, number: int, memory: int) -> None:
        """Run a process to its end; raise where no other can take its place."""
        worker = self._workers[number] = Process(number, self)
        try:
            code = await worker.run(memory)
        finally:
            worker.close()
        if worker.error is not None and (worker.began or not self._began):
            raise worker.error
        if code == 0 or (self._stopping and code == _TOLD):  # whoever read its output has left; or it was told to end
            self._stop()
            return
        self._warn(worker, code)
        if self._stopping:
            return
        self._gone = (self._gone[0] + worker.moved[0], self._gone[1] + worker.moved[1])
        self._told = summed([self._told, {it: told for it, told in worker.figures.items() if KINDS[it].counts}])
        worker.moved, worker.figures = (0, 0, 0.0), {}
        if not worker.began:
            self._failed_starts += 1
            if self._failed_starts >= self._count:
                why = f"{self._failed_starts} processes in a row have died before they served anybody"
                raise worker.error or RingmainError("load", why, "see the lines before this one")
        elif not worker.resumes:
            why = "its process has died, perhaps within a record, and what is no file cannot be mended"
            raise OutputError(f"write to {self._opened[number]}", why, "start again")

    def _warn(self, worker: Process, code: int) -> None:
        how = worker.end_of(code)
        log.warning("process %d %s; lost with it: %d connections", worker.number, how, len(worker.guests))
        for link, guest in worker.guests.values():
            seconds = time.monotonic() - guest.since
            self.record(lost_with_its_process(link.peer, seconds, f"process {worker.number} {how}"))

    def _stop(self) -> bool:
        """Let nobody else in, and the processes end as at SIGTERM; False where none has begun."""
        if self._all_ready is None:
            return False
        if not self._stopping:
            self._stopping = True
            self.gate.stop()
            for worker in self._workers.values():
                worker.channel.shut()
            self._changed.set()
            finish(self._all_ready)
        return True

    def _leave(self) -> None:
        """End all at once."""
        for worker in self._workers.values():
            worker.kill()
        self._session.announcement.withdraw()

    def _look(self) -> tuple[int, int, float]:
        moved = [it.moved for it in self._workers.values()]
        bytes_in = sum(it[0] for it in moved) + self._gone[0]
        bytes_out = sum(it[1] for it in moved) + self._gone[1]
        return bytes_in, bytes_out, max((it[2] for it in moved), default=0.0)

    def _line(self, *figures: Any) -> str:
        connected = sum(len(it.guests) for it in self._workers.values())
        return f"{connected} connected  {progress_line(*figures)}"

    def _figures(self) -> Told:
        """Return what all have counted together, as far as they have told it by now."""
        refused = told_of_clients(self.gate.unserved if self._began else Unserved())
        told = summed([self._told, refused, *(it.figures for it in self._workers.values())])
        not_after = self._context.not_after if self._context is not None else None
        files = told_of_files(self._renewal, {"source": not_after})
        return {**told, **files, "buffer_fullness_ratio": self._look()[2]}


def _check(what: str, template: Template, output: str, session: Session, count: int, options: dict[str, Any]) -> None:
    """Raise UsageError for what several processes cannot do; take out of the options what they do not know."""
    option = template.option
    if options.pop("exec", None) is not None:
        raise UsageError(f"{what} with --exec", "the commands use the other cores already", "leave one of them out")
    if template.varies:
        why = "each process would count and name its own connections"
        raise UsageError(f"{what} with {option} {output}", why, "use {process} only in its name")
    if not template.parts:
        why = "several processes would mix their records there"
        raise UsageError(f"{what} with {option} {output}", why, f"give {option} a FILE with {{process}} in its name")
    if session.account.interval is not None:
        why = "totals of several processes are not added up"
        raise UsageError(f"{what} with --stats-interval", why, "leave one of them out")
    if options["max_connections"] < count:
        why = "each needs a connection"
        raise UsageError(what, why, f"give --max-connections {count} or more")
    if options["self_signed"]:
        why = "each process would make another certificate"
        raise UsageError(f"{what} with self_signed=True", why, "give certfile=")
