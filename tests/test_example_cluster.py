"""The example cluster: whichever process is killed, the Parquet files have every row of every whole connection once."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import feeding
import peers
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "cluster"
if not EXAMPLE.exists():
    pytest.skip("the examples are not beside these tests", allow_module_level=True)
feeding.library("nats")
parquet = feeding.library("pyarrow.parquet")

import brokers  # noqa: E402

# What a killed parser had comes again after 30 s.
PATIENCE = 4 * peers.TIMEOUT


class Cluster:
    """The example, as its command starts it."""

    def __init__(self, bench: peers.Bench) -> None:
        brokers.server_program()
        self.folder = bench.folder / "cluster"
        self.edges = [peers.free_port(), peers.free_port()]
        self._told = (bench.folder / "told").open("wb+")
        ports = [
            ["--nats", *(peers.free_port() for _ in range(3))],
            ["--routes", *(peers.free_port() for _ in range(3))],
        ]
        command = [sys.executable, str(EXAMPLE / "run.py"), str(self.folder), "--edges", *map(str, self.edges)]
        self.program = bench.start(command + [str(it) for part in ports for it in part], stdout=self._told)
        for port in self.edges:
            peers.wait_for_port(port)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def kill(self, name: str) -> None:
        """Kill a process of it."""
        lines = os.pread(self._told.fileno(), 1 << 20, 0).decode().splitlines()
        os.kill([int(line.split()[1]) for line in lines if line.startswith(f"{name} ")][-1], signal.SIGKILL)

    def rows(self) -> Counter[tuple[int, int]]:
        """Return how often each row is in the files of those connections that have ended properly."""
        rows: Counter[tuple[int, int]] = Counter()
        for end in self.folder.glob("ends/*.json"):
            if json.loads(end.read_text())["verdict"] == "ended":
                for path in self.folder.glob(f"rows/connection={end.stem}/*.parquet"):
                    table = parquet.ParquetFile(path).read()
                    rows.update(zip(table["sender"].to_pylist(), table["row"].to_pylist(), strict=True))
        return rows

    def close(self) -> None:
        self.program.signal(signal.SIGTERM)
        self.program.wait()
        self._told.close()


class Sender(threading.Thread):
    """Sends rows to an edge until it is enough, and all of them again to the next one where it is reset."""

    def __init__(self, number: int, edges: list[int]) -> None:
        super().__init__(daemon=True)
        self.enough = threading.Event()
        self.count = self.resets = 0
        self._number = number
        self._edges = edges[number % 2 :] + edges[: number % 2]
        self.start()

    def run(self) -> None:
        while True:
            for port in self._edges:
                with contextlib.suppress(OSError):
                    self._send(port)
                    return
                self.resets += 1
            time.sleep(0.1)

    def _send(self, port: int) -> None:
        with peers.connect(port) as client:
            for at in range(1 << 30):
                rows = ({"sender": self._number, "row": 100 * at + row, "text": "x" * row} for row in range(100))
                client.sendall(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
                self.count = max(self.count, 100 * at + 100)
                if self.count == 100 * at + 100 and self.enough.wait(0.01):
                    break
            client.shutdown(2 - 1)
            if client.recv(1) != b"":
                raise AssertionError("an edge has answered something")


@pytest.mark.parametrize("victims", [["nats-1", "nats-2"], ["parser-1", "parser-2"], ["edge-1"]], ids=" ".join)
def test_whoever_is_killed_every_row_of_a_whole_connection_is_there_once(
    bench: peers.Bench, victims: list[str]
) -> None:
    cluster = Cluster(bench)
    senders = [Sender(number, cluster.edges) for number in range(4)]
    try:
        for victim in victims:
            sent = sum(it.count for it in senders)
            peers.eventually(lambda sent=sent: sum(it.count for it in senders) > sent + 10_000, "more rows to be sent")
            peers.eventually(lambda: any(cluster.folder.glob("rows/*/*.parquet")), "rows to be written")
            cluster.kill(victim)
        for sender in senders:
            sender.enough.set()
        for sender in senders:
            sender.join(PATIENCE)
            assert not sender.is_alive(), cluster.log("edge-1") + cluster.log("edge-2")
        expected = Counter((number, row) for number, it in enumerate(senders) for row in range(it.count))
        deadline = time.monotonic() + PATIENCE
        while (rows := cluster.rows()) != expected and time.monotonic() < deadline:
            time.sleep(0.2)
        assert rows == expected
        assert (sum(it.resets for it in senders) > 0) == (victims == ["edge-1"])
    finally:
        cluster.close()
