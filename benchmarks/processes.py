"""The processes of one transfer: started with a report each, measured where asked, and ended whatever happens."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from benchmarks.workshop import HERE, BenchError, Workshop

TIMEOUT = 300.0
# A measured contender has half the cores to itself, those at the ends of its stream have the others: which processes
# share a core would else be the scheduler's choice, a different one in each round, and decide about half the speed.
ALL_CORES = os.sched_getaffinity(0)
CONTENDER_CORES = set(sorted(ALL_CORES)[len(ALL_CORES) // 2 :])
OTHER_CORES = ALL_CORES - CONTENDER_CORES or ALL_CORES


class Processes:
    """The processes of one transfer, each with a report of its own. Use it as a context manager: all end with it."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = contextlib.ExitStack()  # bound, not listening: those who listen there set SO_REUSEADDR
        self._folder = Path(tempfile.mkdtemp(dir=workshop.folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._ports.close()
        shutil.rmtree(self._folder)

    def start(
        self,
        name: str,
        command: list[str],
        *,
        measured: bool = False,
        copying: bool = False,
        cores: set[int] = ALL_CORES,
        **popen: Any,
    ) -> Any:
        """Start a process, `measured` by a small parent that asks wait4 what it cost; return its Popen."""
        environment = dict(os.environ, BENCH_REPORT=str(self.report_path(name)))
        environment |= {"BENCH_COPY": "1"} if copying else {}
        if measured:
            command = [str(self.workshop.folder / "measure"), str(self._folder / f"{name}.cost"), *command]
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("stdout", subprocess.DEVNULL)
        with (self._folder / f"{name}.log").open("wb") as log:
            os.sched_setaffinity(0, cores)  # inherited, so that it holds from the first instruction on
            process = subprocess.Popen(
                command, env=environment, cwd=HERE.parent, stderr=log, start_new_session=True, **popen
            )
            os.sched_setaffinity(0, ALL_CORES)
        self._running[name] = process
        return process

    def free_port(self) -> int:
        """Return a port that nothing listens at, and that nobody is given who does not ask for it by number."""
        sock = self._ports.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

    def report_path(self, name: str) -> Path:
        """Return where a process writes its report."""
        return self._folder / f"{name}.json"

    @property
    def config_path(self) -> Path:
        """Where a contender's configuration is."""
        return self._folder / "config"

    def stop(self, name: str) -> None:
        """Tell the process that a measuring parent watches to end."""
        os.kill(self.pid(name), signal.SIGTERM)

    def runs(self, name: str) -> bool:
        """Tell whether a process has not ended yet."""
        return self._running[name].poll() is None

    def wait(self, name: str) -> None:
        """Wait until a process ends, for TIMEOUT."""
        try:
            self._running[name].wait(TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{name} did not end in {TIMEOUT:g} s: {self.complaint(name)}") from error
        if self._running[name].returncode and name != "contender":
            raise BenchError(f"{name} failed: {self.complaint(name)}")

    @property
    def names(self) -> list[str]:
        """The processes, those that feed and swallow the stream first: without them the contender never ends."""
        return sorted(self._running, key=lambda name: name == "contender")

    def stdout(self, name: str) -> int:
        """Return the descriptor of a process's standard output, a pipe."""
        pipe = self._running[name].stdout
        assert pipe is not None
        return pipe.fileno()

    def report(self, name: str) -> dict[str, Any]:
        """Return what a process reported of itself; nothing if it is not one of ours."""
        path = self.report_path(name)
        return dict(json.loads(path.read_text() or "{}")) if path.exists() else {}

    def cost(self, name: str) -> dict[str, float]:
        """Return what a measured process took."""
        return dict(json.loads((self._folder / f"{name}.cost").read_text()))

    def complaint(self, name: str) -> str:
        """Return the last of what a process wrote to its standard error."""
        return (self._folder / f"{name}.log").read_text(errors="replace")[-500:]

    def pid(self, name: str) -> int:
        """Return the process that a measuring parent watches."""
        parent = self._running[name].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return int(children[0])

    def wait_for_listener(self, name: str, port: int) -> None:
        """Wait until the process listens, without connecting to it."""
        deadline = time.monotonic() + 20
        while not any(_listens(family, port) for family in ("tcp", "tcp6")):
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{name} does not listen: {self.complaint(name)}")
            time.sleep(0.003)


def _listens(family: str, port: int) -> bool:
    path = Path(f"/proc/net/{family}")
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    fields = (line.split(maxsplit=4) for line in lines)
    return any(local.endswith(f":{port:04X}") and state == "0A" for _, local, _, state, _ in fields)


def cpu_so_far(pid: int) -> float:
    """Return the CPU seconds of a process's first thread, to the microsecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def peak_memory(pid: int) -> int:
    """Return the peak resident size of a process in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def resident(pid: int) -> int:
    """Return the resident size of a process in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@contextlib.contextmanager
def listening_socket() -> Iterator[socket.socket]:
    """Yield a listener of our own at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener
