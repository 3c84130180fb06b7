"""NATS servers with JetStream, each a process of its own; and what stands in their streams."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
import peers
import uvloop
from feeding import library
from nats.js.api import ConsumerConfig, StreamConfig

library("nats")


def server_program() -> str:
    """Return the path of nats-server, which its package puts beside Python."""
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else peers.need("nats-server")


def tags_of(count: int) -> list[dict[str, str]]:
    """Return the headers of messages of one connection, 1,000 bytes each."""
    return [
        {"Ringmain-Connection": "c1", "Ringmain-Offset": str(1000 * number), "Ringmain-Peer": "192.0.2.1:9"}
        for number in range(count)
    ]


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
        self._config = folder / "nats.conf"
        if config:
            self._config.write_text(config)
            self._command += ["-c", str(self._config)]
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

    def reload(self, config: str) -> None:
        """Have it read another configuration, and part with whom that does not let in."""
        self._config.write_text(config)
        reloads = self.program.stderr.count("Reloaded server configuration")
        self.program.signal(signal.SIGHUP)
        told = "Reloaded server configuration"
        peers.eventually(lambda: self.program.stderr.count(told) > reloads, lambda: self.program.stderr)

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

    def acknowledged(self, consumer: str, stream: str = "EVENTS") -> int:
        """Return the sequence up to which all messages are acknowledged."""
        return int(self.run(lambda js: js.consumer_info(stream, consumer)).ack_floor.stream_seq)

    def publish(self, subject: str, *messages: bytes, headers: list[dict[str, str]] | None = None) -> None:
        """Publish messages, each with the headers at its place, and wait until all are stored."""

        async def work(js: Any) -> None:
            for number, message in enumerate(messages):
                await js.publish(subject, message, headers=headers[number] if headers else None)

        self.run(work)

    def messages(self, stream: str = "EVENTS") -> list[bytes]:
        """Return what all messages of a stream have, the empty ones too."""

        async def work(js: Any) -> list[bytes]:
            state = (await js.stream_info(stream)).state
            sequences = range(state.first_seq, state.last_seq + 1) if state.messages else []
            return [(await js.get_msg(stream, sequence)).data or b"" for sequence in sequences]

        return list(self.run(work))

    def stored(self, stream: str = "EVENTS") -> int:
        """Return how many bytes a stream has."""
        return int(self.run(lambda js: js.stream_info(stream)).state.bytes)


class Cluster:
    """Three servers that replicate streams between them."""

    def __init__(self, bench: peers.Bench) -> None:
        routes = [peers.free_port() for _ in range(3)]
        urls = ",".join(f"nats://127.0.0.1:{port}" for port in routes)
        self.brokers = [
            Broker(
                bench,
                *("--name", name, "--cluster_name", "tests", "--cluster", f"nats://127.0.0.1:{port}"),
                *("--routes", urls),
            )
            for name, port in zip("abc", routes, strict=True)
        ]

    def url(self, name: str, user: str = "") -> str:
        """Return the endpoint of a stream or a subject at any of them."""
        return f"nats://{user}{','.join(it.address for it in self.brokers)}/{name}"

    def run(self, work: Callable[[Any], Coroutine[Any, Any, Any]], **options: Any) -> Any:
        """Give a coroutine function a JetStream of one that is up, again until the servers agree on an answer."""

        def attempt() -> Any:
            for broker in self.brokers:
                if broker.program.process.poll() is None:
                    with contextlib.suppress(OSError, nats.errors.Error):
                        return [broker.run(lambda js: asyncio.wait_for(work(js), 2), **options)]
            return None

        return peers.eventually(attempt, "the servers to agree")[0]

    def add_stream(self, name: str, *subjects: str, replicas: int = 3, **config: Any) -> None:
        """Make a stream, once the servers have found one another."""
        wanted = StreamConfig(name=name, subjects=[*subjects] or [name.lower()], num_replicas=replicas, **config)
        self.run(lambda js: js.add_stream(wanted))

    def leader(self, stream: str = "EVENTS") -> Broker:
        """Return the server that leads a stream, once there is one."""

        async def found(js: Any) -> str | None:
            return str((await js.stream_info(stream)).cluster.leader or "")

        name = peers.eventually(lambda: self.run(found), "a leader")
        return self.brokers["abc".index(name)]

    def stored(self, stream: str = "EVENTS") -> int:
        """Return how many bytes a stream has."""

        async def stored(js: Any) -> list[int]:
            return [(await js.stream_info(stream)).state.bytes]

        return int(self.run(stored)[0])

    def replicate(self, replicas: int, stream: str = "EVENTS") -> None:
        """Have so many servers share a stream."""

        async def ask(js: Any) -> None:
            config = (await js.stream_info(stream)).config
            if config.num_replicas != replicas:  # it may be asked again
                await js.update_stream(config.evolve(num_replicas=replicas))

        self.run(ask)

    def step_down(self, stream: str = "EVENTS") -> None:
        """Have the leader of a stream hand over to another one, as when its server is stopped properly."""

        async def ask(js: Any) -> None:
            await js._api_request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=2)

        self.run(ask)
