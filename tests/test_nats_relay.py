"""`ringmain relay tcp://... nats://...`: whole records into a stream, each once, and what clients are told."""

import contextlib
import json
import signal
import socket
import threading

import peers
import pytest
from brokers import Broker
from conftest import Certificates
from publishing import lines, read_log, relaying, send


def until_read(port: int, clients: int = 1) -> None:
    """Wait until the relay has read all of so many clients."""
    peers.eventually(lambda: len(peers.rows_of(port)) > clients and peers.unread_at(port) == 0, "it to be read")


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
    size = 3_000_000  # four of these are less than the window
    sent = [lines(3 * size, seed) for seed in range(4)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(peers.connect(port)) for _ in sent]
        for part in range(3):
            if part > 0:  # all whole lines are stored by now, and what comes is not before the server is killed
                most = 4 * part * size - 100_000
                peers.eventually(lambda most=most: broker.stored() > most, "it to be in the stream")
                broker.pause()
            threads = [
                threading.Thread(target=client.sendall, args=(data[part * size :][:size],))
                for client, data in zip(clients, sent, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(peers.TIMEOUT)
                assert not thread.is_alive()
            until_read(port, 4)
            if part > 0:
                broker.kill()
                broker.start()
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        assert [client.recv(1) for client in clients] == [b""] * 4
    log = read_log(broker)
    assert {peers.sha256(it.data) for it in log.connections.values()} == {peers.sha256(data) for data in sent}
    assert [it.verdicts for it in log.connections.values()] == [[("ended", 3 * size)]] * 4
    assert "messages are stored again" in relay.stderr
    assert "Traceback" not in relay.stderr, relay.stderr


def test_no_client_is_told_of_a_proper_end_before_the_stream_has_all(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker)
    broker.pause()
    with peers.connect(port) as client:
        client.sendall(b"a line\n")
        client.shutdown(socket.SHUT_WR)
        until_read(port)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(peers.TIMEOUT)
        broker.resume()
        assert client.recv(1) == b""
    (connection,) = read_log(broker).connections.values()
    assert connection.data == b"a line\n"
    assert "Traceback" not in relay.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_clients_are_reset_where_the_relay_ends_before_the_stream_has_all(
    bench: peers.Bench, broker: Broker, number: int, code: int
) -> None:
    relay, port = relaying(bench, broker)
    broker.pause()
    with peers.connect(port) as client:
        client.sendall(b"a line\n")
        client.shutdown(socket.SHUT_WR)
        until_read(port)
        relay.signal(number)
        assert peers.ends_in_reset(client), relay.stderr
    broker.resume()
    assert relay.wait() == code


def test_a_signal_stores_what_was_read_and_resets_those_who_have_not_ended(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker, "--max-connections", 2)
    with peers.connect(port) as client, peers.connect(port) as other:
        client.sendall(b"a line\nand a part")
        other.sendall(b"another\n")
        peers.eventually(lambda: broker.stored() > 0, "a line in the stream")
        until_read(port, 2)
        relay.signal(signal.SIGTERM)
        assert peers.ends_in_reset(client)
        assert peers.ends_in_reset(other)
    assert relay.wait() == 143
    assert sorted((it.data, it.verdicts) for it in read_log(broker).connections.values()) == [
        (b"a line\n", [("stopped", 7)]),
        (b"another\n", [("stopped", 8)]),
    ]


def test_of_a_client_that_is_lost_the_whole_records_stay_and_the_end_says_how_it_was(
    bench: peers.Bench, broker: Broker
) -> None:
    stats = bench.folder / "stats"
    relay, port = relaying(bench, broker, "--stats-file", stats)
    with peers.connect(port) as client:
        client.sendall(b"one\ntwo\nthr")
        peers.eventually(lambda: broker.stored() > 0, "two lines in the stream")
        peers.close_with_reset(client)
    peers.eventually(lambda: stats.exists() and stats.read_text().endswith("\n"), "its row")
    (connection,) = read_log(broker).connections.values()
    assert (connection.data, connection.verdicts) == (b"one\ntwo\n", [("reset", 8)])
    row = json.loads(stats.read_text())
    assert (row["source"]["bytes"], row["source"]["dropped_bytes"], row["verdict"]) == (8, 3, "reset")
    assert row["destination"]["peer"] == broker.url("events")
    relay.says("dropped 3 bytes of a last record that has no end")


def test_totals_tell_what_of_all_clients_is_stored(bench: peers.Bench, broker: Broker) -> None:
    stats = bench.folder / "stats"
    relay, port = relaying(bench, broker, "--max-connections", 2, "--stats-file", stats, "--stats-interval", "50ms")

    def last(connections: int, size: int) -> bool:
        rows = [json.loads(line) for line in stats.read_text().splitlines()] if stats.exists() else []
        row = next((row for row in reversed(rows) if row.get("event") == "totals"), None)
        if row is None:
            return False
        return bool((row["connections"], row["source"]["bytes"]) == (connections, size)) and "destination" not in row

    with peers.connect(port) as one, peers.connect(port) as other:
        one.sendall(b"one\ntwo\nthr")
        other.sendall(b"a\n")
        peers.eventually(lambda: last(2, 10), "a row of two")
    peers.eventually(lambda: last(0, 14), "a row of those who have left")
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 143
    assert last(0, 14)


def test_tls_without_a_goodbye_is_told_from_a_proper_end(
    bench: peers.Bench, broker: Broker, certificates: Certificates
) -> None:
    tls = ("--source-certfile", certificates.server, "--max-connections", 2)
    relay, port = relaying(bench, broker, *tls, scheme="tcps")
    with peers.connect_tls(port, certificates.ca) as client:
        client.sendall(b"a line\n")
        peers.eventually(lambda: broker.stored() > 0, "a line in the stream")
        with client.unwrap() as plain:  # close_notify both ways
            plain.shutdown(socket.SHUT_WR)
            assert plain.recv(1) == b""
    with peers.connect_tls(port, certificates.ca) as client:
        client.sendall(b"another\n")
        socket.socket.shutdown(client, socket.SHUT_WR)
        relay.says("without close_notify")
    verdicts = sorted(it.verdicts for it in read_log(broker).connections.values())
    assert verdicts == [[("ended", 7)], [("truncated", 8)]]


def test_a_subject_may_be_that_of_a_peer_or_of_a_connection(bench: peers.Bench, broker: Broker) -> None:
    broker.add_stream("PEERS", "of.*.*")
    _, port = relaying(bench, broker, "--accept-proxy", subject="of.{peer}.{connection}")
    with peers.connect(port) as client:
        client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 9000\r\na line\n")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    log = read_log(broker, "PEERS")
    (name,), (connection,) = log.connections, log.connections.values()
    assert connection.peer == "192.0.2.1:4000"
    assert log.subjects == {f"of.192_0_2_1:4000.{name.replace('.', '-')}"}


def test_a_record_that_no_message_can_hold_is_an_error_of_its_connection(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker, "--max-connections", 2, "--gate", "queue")
    long = b"x" * 900_000 + b"\n"  # less than max_payload, more than a message otherwise has
    send(port, b"short\n" * 100 + long + long + b"short\n")
    with peers.connect(port) as client:
        client.sendall(b"fine\n")
        peers.eventually(lambda: len(read_log(broker).connections) == 2, "it to be stored")
        with contextlib.suppress(OSError):
            client.sendall(b"x" * 3_000_000)
        assert peers.ends_in_reset(client)
    relay.says("raise the server's max_payload")
    first, second = read_log(broker).connections.values()
    assert first.data == b"short\n" * 100 + long + long + b"short\n"
    assert sorted(map(len, first.messages))[-2:] == [900_001, 900_001]
    assert second.data == b"fine\n"
    send(port, b"others go on\n")


def test_the_more_clients_there_may_be_the_shorter_is_the_longest_record(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker, "--max-connections", 1000)
    fits, long = b"x" * 200_000 + b"\n", b"x" * 300_000 + b"\n"
    send(port, fits)
    assert peers.is_reset(port, long)
    relay.says("is longer than 268435 bytes; lower --max-connections, check the delimiter")
    (connection, _) = read_log(broker).connections.values()
    assert connection.data == fits


def test_a_stream_is_made_for_a_trial(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker, "--create-stream", "TRIAL", subject="trial.edge")
    send(port, b"a line\n")
    relay.says("made the stream TRIAL")
    (connection,) = read_log(broker, "TRIAL").connections.values()
    assert connection.data == b"a line\n"


@pytest.mark.parametrize(
    ("arguments", "subject", "code", "words"),
    [
        ([], "nobody", 78, "a stream for nobody at"),
        (["--create-stream", "EVENTS:3"], "events", 0, ""),
        (["--create-stream", "EVENTS"], "nobody", 1, "with other subjects; give --create-stream another name"),
        (["--create-stream", "MANY:3"], "nobody", 1, "replicas"),
        (["--listen"], "events", 2, "--listen"),
        (["--send-proxy", "v1"], "events", 2, "--send-proxy"),
        (["--path", "kernel"], "events", 2, "--path"),
        (["--credentials", "/nowhere"], "events", 58, "/nowhere"),
        (["--connect", "--listen-once"], "events", 2, "--listen-once"),
    ],
)
def test_what_cannot_be_is_one_line(
    bench: peers.Bench, broker: Broker, arguments: list[str], subject: str, code: int, words: str
) -> None:
    relay = bench.ringmain("relay", *arguments, "tcp://127.0.0.1:0", broker.url(subject))
    if code == 0:
        relay.says("listening on")
        return
    assert relay.wait() == code, relay.stderr
    assert words in relay.stderr
    assert relay.stderr.count("\n") == 1


def test_what_a_dialled_source_brings_is_stored_too(bench: peers.Bench, broker: Broker) -> None:
    data = lines(500_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay = bench.ringmain("relay", "--connect", source, broker.url("events"))
        peer, _ = listener.accept()
        with peer:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(peers.TIMEOUT)
            assert peer.recv(1) == b""
    assert relay.wait() == 0, relay.stderr
    (connection,) = read_log(broker).connections.values()
    assert peers.sha256(connection.data) == peers.sha256(data)
