"""`ringmain relay tcp://... nats://...`: whole records into a stream, each once, and what clients are told."""

import signal
import socket
import threading

import peers
import pytest
from brokers import Broker
from publishing import lines, read_log


@pytest.fixture
def broker(bench: peers.Bench) -> Broker:
    broker = Broker(bench)
    broker.add_stream("EVENTS")
    return broker


def relaying(
    bench: peers.Bench, broker: Broker, *arguments: object, subject: str = "events"
) -> tuple[peers.Program, int]:
    """Start a relay into the log; return it and the port that it listens at."""
    port_file = bench.folder / f"port {len(bench.programs)}"
    there = broker.url(subject)
    relay = bench.ringmain("relay", "--port-file", port_file, *arguments, "tcp://127.0.0.1:0", there)

    def port() -> int | None:
        assert relay.process.poll() is None, relay.stderr
        return int(port_file.read_text()) if port_file.exists() and port_file.read_text() else None

    return relay, peers.eventually(port, "a port")


def send(port: int, data: bytes) -> None:
    """Send all, end properly, and wait for the proper end that tells that all is stored."""
    with peers.connect(port) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_a_client_is_told_of_its_end_once_all_of_it_is_in_the_stream(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker)
    data = lines(3_000_000)
    send(port, data)
    log = read_log(broker)
    (connection,) = log.connections.values()
    assert peers.sha256(connection.data) == peers.sha256(data)
    assert connection.verdicts == [("ended", len(data))]
    assert all(message.endswith(b"\n") and len(message) <= 256 << 10 for message in connection.messages)
    send(port, b"another")
    assert sorted(len(it.data) for it in read_log(broker).connections.values()) == [len(b"another\n"), len(data)]
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 143


def test_many_clients_are_told_apart_and_each_is_in_order(bench: peers.Bench, broker: Broker) -> None:
    _, port = relaying(bench, broker, "--max-connections", 8)
    sent = [lines(400_000, seed) for seed in range(8)]
    threads = [threading.Thread(target=send, args=(port, data)) for data in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()
    log = read_log(broker)
    assert {peers.sha256(it.data) for it in log.connections.values()} == {peers.sha256(data) for data in sent}
    assert len(log.connections) == 8


def test_a_server_that_is_killed_costs_no_record_and_brings_none_twice(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker, "--max-connections", 4)
    sent = [lines(12_000_000, seed) for seed in range(4)]
    threads = [threading.Thread(target=send, args=(port, data)) for data in sent]
    for thread in threads:
        thread.start()
    for size in (4_000_000, 16_000_000):
        peers.eventually(lambda size=size: broker.stored() > size, "some of it to be in the stream")
        broker.kill()
        broker.start()
    for thread in threads:
        thread.join(peers.TIMEOUT)
        assert not thread.is_alive()
    log = read_log(broker)
    assert {peers.sha256(it.data) for it in log.connections.values()} == {peers.sha256(data) for data in sent}
    assert [it.verdicts for it in log.connections.values()] == [[("ended", 12_000_000)]] * 4
    assert "messages are stored again" in relay.stderr
    assert "Traceback" not in relay.stderr, relay.stderr
