"""NATS servers with JetStream, each a process of its own; and what stands in their streams."""

import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import nats
import peers
import uvloop
from feeding import library
from nats.js.api import ConsumerConfig, StreamConfig

library("nats")


def server_program() -> str:
    """Return the path of nats-server, which its package puts beside Python."""
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else peers.need("nats-server")


class Broker:
    """A server at a port of its own, with its files in the test's folder; it can be killed, and started again there."""

    def __init__(self, bench: peers.Bench, *arguments: Any, config: str = "", jetstream: bool = True) -> None:
        self.port = peers.free_port()
        self._bench = bench
        folder = bench.folder / f"nats-{self.port}"
        folder.mkdir()
        self._command = [server_program(), "-a", "127.0.0.1", "-p", str(self.port)]
        if jetstream:
            self._command += ["-js", "-sd", str(folder)]
        if config:
            path = folder / "nats.conf"
            path.write_text(config)
            self._command += ["-c", str(path)]
        self._command += map(str, arguments)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.program = self._bench.start(self._command)
        self.program.says("Server is ready")

    def pause(self) -> None:
        """Let it stand still: all its threads do once this returns, which a signal alone does not say."""
        self.program.signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.program.process.pid}/task")

        def stopped() -> bool:
            return all((it / "stat").read_text().rpartition(")")[2].split()[0] == "T" for it in threads.iterdir())

        peers.eventually(stopped, "the server to stand still")

    def resume(self) -> None:
        """Let it go on."""
        self.program.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would end its process."""
        self.program.process.kill()
        self.program.process.wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, name: str, user: str = "") -> str:
        """Return the endpoint of a stream or a subject there."""
        return f"nats://{user}{self.address}/{name}"

    def run(self, work: Callable[[Any], Coroutine[Any, Any, Any]], **options: Any) -> Any:
        """Give a coroutine function a JetStream of nats-py's; return what it returns."""

        async def connected() -> Any:
            client = await nats.connect(f"nats://{self.address}", **options)
            try:
                return await work(client.jetstream(timeout=peers.TIMEOUT))
            finally:
                await client.close()

        return uvloop.run(connected())

    def add_stream(self, name: str, *subjects: str, **config: Any) -> None:
        self.run(lambda js: js.add_stream(StreamConfig(name=name, subjects=[*subjects] or [name.lower()], **config)))

    def add_consumer(self, stream: str, name: str, **config: Any) -> None:
        self.run(lambda js: js.add_consumer(stream, ConsumerConfig(durable_name=name, **config)))

    def publish(self, subject: str, *messages: bytes, headers: list[dict[str, str]] | None = None) -> None:
        """Publish messages, each with the headers at its place, and wait until all are stored."""

        async def work(js: Any) -> None:
            for number, message in enumerate(messages):
                await js.publish(subject, message, headers=headers[number] if headers else None)

        self.run(work)

    def stored(self, stream: str = "EVENTS") -> int:
        """Return how many bytes a stream has."""
        return int(self.run(lambda js: js.stream_info(stream)).state.bytes)
