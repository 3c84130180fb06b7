"""A relay into a log, and a load from one, where the server or the stream changes: what is waited out, and told."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import peers
import pytest
from brokers import Broker
from conftest import Certificates
from nats.js.api import SubjectTransform
from publishing import read_log, relaying, send

import ringmain
from ringmain import errors


def users(password: str) -> str:
    """Return a configuration with two users, of whom one keeps his password."""
    return f"""authorization: {{ users: [
        {{ user: ann, password: "{password}" }}
        {{ user: boss, password: secret }}
    ] }}"""


@pytest.fixture
def guarded(bench: peers.Bench) -> Broker:
    broker = Broker(bench, config=users("first"))
    broker.run(lambda js: js.add_stream(name="EVENTS", subjects=["events"]), user="boss", password="secret")
    return broker


def test_a_relay_that_the_server_refuses_for_a_while_goes_on_when_it_is_let_in(
    bench: peers.Bench, guarded: Broker
) -> None:
    relay, port = relaying(bench, guarded, user="ann:first@")
    with peers.connect(port) as client:
        client.sendall(b"one\n")
        guarded.reload(users("second"))
        relay.says("Authorization Violation")
        client.sendall(b"two\n")
        guarded.reload(users("first"))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"", relay.stderr
    (connection,) = read_log(guarded, user="boss", password="secret").connections.values()
    assert connection.data == b"one\ntwo\n"
    assert relay.stderr.count("; trying again") <= 2  # once it is refused, and once it is lost
    assert "first" not in relay.stderr


def test_a_load_that_the_server_refuses_for_a_while_goes_on_when_it_is_let_in(
    guarded: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    def publish(data: bytes) -> None:
        guarded.run(lambda js: js.publish("events", data), user="boss", password="secret")

    publish(b"one")
    with ringmain.load(guarded.url("EVENTS", "ann:first@"), consumer="c") as loader:
        assert bytes(next(loader)) == b"one"
        guarded.reload(users("second"))
        rest = threading.Thread(target=lambda: got.append(bytes(next(loader))))
        got: list[bytes] = []
        rest.start()
        peers.eventually(lambda: "; trying again\n" in caplog.text, lambda: caplog.text)
        guarded.reload(users("first"))
        publish(b"two")
        rest.join(peers.TIMEOUT)
        assert got == [b"two"]


def test_what_is_done_while_the_server_refuses_a_load_does_not_come_again(
    run: Callable[[Coroutine[Any, Any, Any]], Any], guarded: Broker
) -> None:
    def ask(work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return guarded.run(work, user="boss", password="secret")

    async def until(condition: Callable[[], object], what: str) -> None:
        await asyncio.to_thread(peers.eventually, condition, what)

    def acknowledged() -> int:
        return int(ask(lambda js: js.consumer_info("EVENTS", "c")).ack_floor.stream_seq)

    async def work() -> None:
        async with ringmain.load(guarded.url("EVENTS", "ann:first@"), consumer="c") as loader:
            assert [bytes(await anext(loader)) for _ in range(2)] == [b"one", b"two"]
            await until(lambda: acknowledged() == 1, "the first message to be done")
            guarded.reload(users("second"))
            await until(lambda: loader.is_lost, "the connection to be lost")
            assert bytes(await anext(loader)) == b"three"
            failures = loader.connect_failures
            await until(lambda: loader.connect_failures > failures + 1, "tries in vain")
            await asyncio.to_thread(guarded.reload, users("first"))
            await until(lambda: acknowledged() == 2, "the second message to be done")

    for data in (b"one", b"two", b"three"):
        ask(lambda js, data=data: js.publish("events", data))
    run(work())


def test_files_for_the_server_that_are_written_while_it_is_away_are_read_again(
    bench: peers.Bench, certificates: Certificates
) -> None:
    authorities = bench.file(Path(certificates.ca).read_bytes(), "authorities.pem")
    whole = authorities.read_bytes()
    broker = Broker(bench, "--tls", "--tlscert", certificates.server, "--tlskey", certificates.server)
    broker.run(
        lambda js: js.add_stream(name="EVENTS", subjects=["events"]),
        tls=ssl.create_default_context(cafile=certificates.ca),
    )
    relay, port = relaying(bench, broker, "--destination-cafile", authorities)
    with peers.connect(port) as client:
        client.sendall(b"one\n")
        authorities.write_bytes(whole[: len(whole) // 2])
        broker.kill()
        relay.says(f"CA file {authorities}")
        broker.start()
        authorities.write_bytes(whole)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"", relay.stderr


def test_a_stream_that_is_deleted_is_told_of_and_ends_the_relay(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker)
    send(port, b"one\n")
    broker.run(lambda js: js.delete_stream("EVENTS"))
    with peers.connect(port) as client:
        client.sendall(b"two\n")
        assert peers.ends_in_reset(client)
    assert relay.wait() == errors.NotFoundError.exit_code, relay.stderr
    assert relay.stderr.count("nats stream add EVENTS --subjects 'events'") == 2  # while it is looked for, and then
    assert "Traceback" not in relay.stderr


def test_a_stream_that_is_made_anew_gets_what_was_not_stored(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker)
    with peers.connect(port) as client:
        client.sendall(b"one\n")
        peers.eventually(lambda: broker.stored() > 0, "a line in the stream")
        broker.run(lambda js: js.delete_stream("EVENTS"))
        client.sendall(b"two\n")
        relay.says("there is none")
        broker.add_stream("EVENTS")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"", relay.stderr
    assert broker.messages() == [b"two\n", b""]


def test_a_stream_that_acknowledges_nothing_is_refused(bench: peers.Bench, broker: Broker) -> None:
    broker.add_stream("MUTE", no_ack=True)
    relay = bench.ringmain("relay", "tcp://127.0.0.1:0", broker.url("mute"))
    assert relay.wait() == errors.UsageError.exit_code
    assert "nats stream edit MUTE --ack" in relay.stderr
    assert relay.stderr.count("\n") == 1


def test_a_stream_that_becomes_such_a_one_ends_the_relay(bench: peers.Bench, broker: Broker) -> None:
    relay, port = relaying(bench, broker)
    broker.run(lambda js: js.update_stream(name="EVENTS", subjects=["events"], no_ack=True))
    with peers.connect(port) as client:
        client.sendall(b"one\n")
        assert peers.ends_in_reset(client)
    assert relay.wait() == errors.UsageError.exit_code, relay.stderr
    assert "nats stream edit EVENTS --ack" in relay.stderr


def test_a_client_whose_subject_no_stream_takes_is_reset_and_others_go_on(bench: peers.Bench, broker: Broker) -> None:
    broker.add_stream("SOME", "of.192_0_2_1:4000")
    relay, port = relaying(bench, broker, "--accept-proxy", "--max-connections", 2, subject="of.{peer}")

    def header(host: str) -> bytes:
        return f"PROXY TCP4 {host} 192.0.2.9 4000 9000\r\n".encode()

    assert peers.is_reset(port, header("192.0.2.2") + b"a line\n")
    relay.says("192.0.2.2:4000: a stream for of.192_0_2_2:4000 at ")
    send(port, header("192.0.2.1") + b"another\n")
    (connection,) = read_log(broker, "SOME").connections.values()
    assert (connection.peer, connection.data) == ("192.0.2.1:4000", b"another\n")


def test_a_stream_may_spread_what_comes_over_partitions(bench: peers.Bench, broker: Broker) -> None:
    spread = SubjectTransform(src="of.*", dest="of.{{partition(3,1)}}.{{wildcard(1)}}")
    broker.add_stream("PARTS", "of.*", subject_transform=spread)
    _, port = relaying(bench, broker, subject="of.{peer}")
    for _ in range(3):
        send(port, b"a line\n")
    log = read_log(broker, "PARTS")
    assert len(log.connections) == len(log.subjects) == 3
    assert {subject.split(".")[1] for subject in log.subjects} <= {"0", "1", "2"}


def test_messages_are_as_small_as_the_stream_wants_them(bench: peers.Bench, broker: Broker) -> None:
    broker.add_stream("SMALL", max_msg_size=2000)
    _, port = relaying(bench, broker, "--max-connections", 50, subject="small")
    data = b"".join(b"line %d\n" % number for number in range(2000))
    send(port, data)
    (connection,) = read_log(broker, "SMALL").connections.values()
    assert connection.data == data
    assert max(map(len, connection.messages)) <= 2000 - 1024
    assert len(connection.messages) < 200


def test_a_stream_without_room_for_headers_is_refused(bench: peers.Bench, broker: Broker) -> None:
    broker.add_stream("SMALL", max_msg_size=1000)
    saver = bench.ringmain("save", broker.url("small"))
    assert saver.wait() == errors.UsageError.exit_code
    assert "nats stream edit SMALL --max-msg-size" in saver.stderr
    assert saver.stderr.count("\n") == 1
