"""`ringmain load nats://...`, and what it says of a server that it cannot use: one line, and an exit code."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import brokers
import operators
import peers
import pytest
import streams
from conftest import Certificates
from managers import Manager

SUBJECTS = ["events.>"]
NAMED = ["load", "--consumer", "c"]


def refused(bench: peers.Bench, *arguments: Any) -> tuple[int, str]:
    """Return the exit code and the only line that `ringmain` writes."""
    program = bench.ringmain(*arguments)
    code = program.wait()
    (line,) = program.stderr.splitlines()
    return code, line


def test_messages_are_written_and_acknowledged(broker: brokers.Broker, bench: peers.Bench, tmp_path: Path) -> None:
    sent = [peers.payload(100_000, number) for number in range(30)]
    broker.publish("events.a", *sent)
    got, stats = tmp_path / "got", tmp_path / "stats"
    options = ["--until-sequence", 30, "-O", got, "--stats-file", stats, "--progress"]
    program = bench.ringmain(*NAMED, *options, broker.url("EVENTS"))
    assert program.wait() == 0, program.stderr
    assert peers.sha256(got) == peers.sha256(b"".join(sent))
    row = json.loads(stats.read_text())
    assert (row["peer"], row["bytes"], row["blocks"], row["verdict"]) == (broker.url("EVENTS"), 3_000_000, 30, "ended")
    again = bench.ringmain(*NAMED, "--until-sequence", 30, broker.url("EVENTS"), stdout=subprocess.PIPE)
    assert (again.wait(), again.process.stdout.read()) == (0, b"")


def test_a_signal_ends_the_wait_and_leaves_nothing_unacknowledged_that_was_written(
    broker: brokers.Broker, bench: peers.Bench
) -> None:
    broker.publish("events.a", b"one\n", b"two\n")
    program = bench.ringmain(*NAMED, broker.url("EVENTS"), stdout=subprocess.PIPE)
    assert program.process.stdout.readline() == b"one\n"
    assert program.process.stdout.readline() == b"two\n"
    program.signal(signal.SIGTERM)
    assert program.wait() == 128 + signal.SIGTERM, program.stderr
    info = broker.run(lambda js: js.consumer_info("EVENTS", "c"))
    assert (info.ack_floor.stream_seq, info.num_ack_pending) == (2, 0)


def test_what_a_reader_of_our_output_did_not_take_stays_in_the_log(broker: brokers.Broker, bench: peers.Bench) -> None:
    sent = [peers.payload(300_000, number) for number in range(20)]
    broker.publish("events.a", *sent)
    program = bench.ringmain(*NAMED, broker.url("EVENTS"), stdout=subprocess.PIPE)
    assert program.process.stdout.read(1000) == sent[0][:1000]
    program.process.stdout.close()
    assert program.wait() == 0, program.stderr
    again = bench.ringmain(*NAMED, "--until-sequence", 20, broker.url("EVENTS"), "-O", bench.folder / "rest")
    assert again.wait() == 0, again.stderr
    rest = (bench.folder / "rest").read_bytes()
    assert all(message in rest for message in sent[8:])  # a pipe holds 1 MiB, and we hold one more


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "it needs a consumer"),
        (["--consumer", "a.b"], "--consumer 'a.b': not a consumer name"),
        (["--consumer", "c", "--max-connections", "2"], "--max-connections: it has no meaning for a NATS stream"),
        (["--consumer", "c", "--listen-once"], "--listen-once: it has no meaning"),
        (["--consumer", "c", "--delimiter", "x"], "--delimiter: it has no meaning"),
        (["--consumer", "c", "-O", "{peer}"], "name one file"),
        (["--consumer", "c", "--filter", "a b"], "--filter 'a b': not a subject"),
        (["--consumer", "c", "--from-sequence", "3", "--until-sequence", "2"], "no message is between"),
    ],
)
def test_options_that_make_no_sense_are_named(bench: peers.Bench, options: list[str], words: str) -> None:
    code, line = refused(bench, "load", *options, "nats://127.0.0.1:1/EVENTS")
    assert code == 2
    assert re.search(words, line), line


def test_options_of_a_log_are_refused_at_a_socket(bench: peers.Bench) -> None:
    code, line = refused(bench, *NAMED, "tcp://127.0.0.1:0")
    assert (code, "--consumer: it has no meaning for a socket" in line) == (2, True)


def test_no_server_and_no_such_host_have_exit_codes_of_their_own(bench: peers.Bench) -> None:
    code, line = refused(bench, *NAMED, f"nats://127.0.0.1:{peers.free_port()}/EVENTS")
    assert (code, "connection refused; is a NATS server listening there?" in line) == (7, True)
    code, line = refused(bench, *NAMED, "nats://nowhere.invalid/EVENTS")
    assert (code, "nowhere.invalid:4222" in line) == (6, True)


def test_the_next_server_is_tried(broker: brokers.Broker, bench: peers.Bench) -> None:
    broker.publish("events.a", b"one")
    url = f"nats://127.0.0.1:{peers.free_port()},{broker.address},127.0.0.1:{peers.free_port()}/EVENTS"
    program = bench.ringmain(*NAMED, "--until-sequence", 1, url, stdout=subprocess.PIPE)
    assert (program.wait(), program.process.stdout.read()) == (0, b"one")


def test_a_server_that_is_none_is_a_time_out_or_told_of(bench: peers.Bench) -> None:
    with streams.server_at() as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}/EVENTS"
        code, line = refused(bench, *NAMED, "--connect-timeout", "200ms", url)
    assert (code, "is it a NATS server? else raise --connect-timeout" in line) == (28, True)


def test_no_stream_no_jetstream_and_another_consumer_are_told_apart(broker: brokers.Broker, bench: peers.Bench) -> None:
    code, line = refused(bench, *NAMED, broker.url("NONE"))
    assert (code, "stream NONE" in line, "nats stream add" in line) == (78, True, True)
    broker.add_consumer("EVENTS", "c", filter_subject="events.a")
    code, line = refused(bench, *NAMED, "--filter", "events.b", broker.url("EVENTS"))
    assert (code, "it was made with --filter events.a" in line) == (2, True)
    plain = brokers.Broker(bench, jetstream=False)
    code, line = refused(bench, *NAMED, plain.url("EVENTS"))
    assert (code, "has no JetStream; start it with --jetstream" in line) == (78, True)


def test_a_wrong_password_is_refused_and_not_shown(bench: peers.Bench) -> None:
    broker = brokers.Broker(bench, "--user", "ann", "--pass", "p@ss")
    for user in ("", "ann:s3cr3t@", "s3cr3t@"):
        code, line = refused(bench, *NAMED, broker.url("EVENTS", user))
        assert (code, "or give --credentials" in line, "s3cr3t" in line) == (67, True, False)
    code, _ = refused(bench, *NAMED, broker.url("EVENTS", "ann:p%40ss@"))
    assert code == 78  # it is in, and there is no such stream


def test_a_permission_that_is_missing_is_told_of_at_once(bench: peers.Bench) -> None:
    config = """authorization { users = [{ user: ann, password: x, permissions: { publish: "none" } }] }"""
    broker = brokers.Broker(bench, config=config)
    code, line = refused(bench, *NAMED, broker.url("EVENTS", "ann:x@"))
    assert (code, "permissions violation for publish" in line) == (67, True), line


def test_tls_is_verified_and_wanted_before_a_secret_is_sent(bench: peers.Bench, certificates: Certificates) -> None:
    pem = certificates.server
    broker = brokers.Broker(bench, "--tls", "--tlscert", pem, "--tlskey", pem)
    url = broker.url("EVENTS").replace("127.0.0.1", "localhost")
    code, _ = refused(bench, *NAMED, url)
    assert code == 60
    for scheme in ("nats://", "tls://"):
        code, line = refused(bench, *NAMED, "--cafile", certificates.ca, url.replace("nats://", scheme))
        assert (code, "stream EVENTS" in line) == (78, True), line

    heard = []

    def answer(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1048576,"auth_required":true}\r\n')
            heard.append(peers.read_all(sock))

    with streams.server_at() as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        code, line = refused(bench, *NAMED, f"tls://ann:s3cr3t@127.0.0.1:{listener.getsockname()[1]}/EVENTS")
        thread.join()
    assert (code, "the server offers no TLS" in line) == (35, True), line
    assert heard == [b""]


def test_a_credentials_file_without_credentials_is_named(bench: peers.Bench) -> None:
    for content in (b"", b"nothing\n", b"-----BEGIN NATS USER JWT-----\nx\n"):
        path = bench.file(content, "creds")
        code, line = refused(bench, *NAMED, "--credentials", path, "nats://127.0.0.1:1/EVENTS")
        assert (code, f"--credentials {path}: it has no" in line) == (58, True), line


def test_without_nats_py_one_line_says_what_to_install(bench: peers.Bench) -> None:
    code = (
        "import sys; sys.modules['nats'] = None; sys.argv = ['ringmain', 'load', '--consumer', 'c', "
        "'nats://127.0.0.1:1/EVENTS']; from ringmain.__main__ import main; main()"
    )
    program = bench.start([sys.executable, "-c", code])
    assert program.wait() == 2
    (line,) = program.stderr.splitlines()
    assert line.endswith("pip install 'ringmain[nats]'")


def test_without_what_credentials_are_read_by_one_line_says_what_to_install(bench: peers.Bench) -> None:
    path = bench.file(b"", "creds")
    code = (
        "import sys; sys.modules['nkeys'] = None; sys.argv = ['ringmain', 'load', '--consumer', 'c', '--credentials', "
        f"{str(path)!r}, 'nats://127.0.0.1:1/EVENTS']; from ringmain.__main__ import main; main()"
    )
    program = bench.start([sys.executable, "-c", code])
    assert program.wait() == 2
    (line,) = program.stderr.splitlines()
    assert "needs nkeys" in line
    assert line.endswith("pip install 'ringmain[nats]'")


def test_a_credentials_file_lets_its_user_in(bench: peers.Bench, tmp_path: Path) -> None:
    broker = brokers.Broker(bench, config=operators.configuration(), jetstream=False)
    for seed, expected in (
        (operators.OURS, 78),
        (operators.ANOTHERS, 67),
        (b"SUNONE", 58),
    ):  # in, where no streams are; another's; none
        path = operators.write_credentials(tmp_path / "creds", seed)
        code, line = refused(bench, *NAMED, "--credentials", path, broker.url("EVENTS"))
        assert code == expected, line


def test_a_relay_from_standard_input_saves_it(broker: brokers.Broker, bench: peers.Bench, tmp_path: Path) -> None:
    source = bench.file(b"one\ntwo\n")
    for end in ("-", source):
        with source.open("rb") as stdin:
            program = bench.ringmain("relay", end, broker.url("events.a"), stdin=stdin)
            assert program.wait() == 0, program.stderr
    got = tmp_path / "got"
    program = bench.ringmain(*NAMED, "--append", "-O", got, broker.url("EVENTS"))
    peers.eventually(lambda: got.exists() and got.read_bytes() == b"one\ntwo\n" * 2, "all lines")


def test_sighup_reopens_the_output_and_the_load_goes_on(
    broker: brokers.Broker, bench: peers.Bench, tmp_path: Path
) -> None:
    output = tmp_path / "got"
    program = bench.ringmain(*NAMED, "--append", "-O", output, broker.url("EVENTS"), start_new_session=True)
    broker.publish("events.a", b"one\n")
    peers.eventually(lambda: output.exists() and output.read_bytes() == b"one\n", "the first message")
    output.rename(tmp_path / "before")
    program.signal(signal.SIGHUP)
    peers.eventually(output.exists, "another file")
    broker.publish("events.a", b"two\n")
    peers.eventually(lambda: output.read_bytes() == b"two\n", "the second message")
    program.signal(signal.SIGTERM)
    assert program.wait() == 128 + signal.SIGTERM, program.stderr


def test_a_consumer_that_delivers_a_message_once_is_refused_where_the_end_is_looked_for(
    broker: brokers.Broker, bench: peers.Bench
) -> None:
    broker.add_consumer("EVENTS", "c", max_deliver=1)
    code, line = refused(bench, *NAMED, "--until-sequence", "2", broker.url("EVENTS"))
    assert code == 2
    assert "it delivers a message 1 times at most" in line


@pytest.mark.parametrize("option", [["--cafile"], ["--min-tls-version", "1.3"]], ids=lambda option: option[0])
def test_an_option_of_tls_is_not_ignored_where_the_server_has_none(
    broker: brokers.Broker, bench: peers.Bench, certificates: Certificates, option: list[str]
) -> None:
    option = [*option, str(certificates.ca)] if len(option) == 1 else option
    code, line = refused(bench, *NAMED, *option, broker.url("EVENTS", "token@"))
    assert code == 35
    assert "TLS" in line


@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_who_has_lost_the_server_tells_the_service_manager(
    broker: brokers.Broker, bench: peers.Bench, tmp_path: Path, verb: str
) -> None:
    manager = Manager(f"{tmp_path}/notify")
    with contextlib.closing(manager.sock):
        ends = [broker.url("EVENTS" if verb == "load" else "events.a")]
        if verb == "relay":
            ends.insert(0, "tcp://127.0.0.1:0")
        options = ["--consumer", "c"] if verb == "load" else []
        bench.ringmain(verb, *options, *ends, stdin=-1, env=manager.environment)
        usual = "STATUS=0 connected, 0 B" if verb == "relay" else "STATUS=connected, 0 B"
        manager.hears(usual)
        broker.kill()
        manager.hears(f"STATUS={'0 connected, ' * (verb == 'relay')}waiting for nats://{broker.address}, ")
        broker.start()
        manager.hears(usual)


def test_the_last_totals_of_a_log_count_each_byte_once(
    broker: brokers.Broker, bench: peers.Bench, tmp_path: Path
) -> None:
    broker.publish("events.a", b"12345\n", b"123\n")
    stats = tmp_path / "stats"
    options = ["--until-sequence", 2, "--stats-file", stats, "--stats-interval", "1h"]
    program = bench.ringmain(*NAMED, *options, broker.url("EVENTS"))
    assert program.wait() == 0, program.stderr
    row, totals = map(json.loads, stats.read_text().splitlines())
    assert (totals["event"], totals["bytes"], totals["reads"]) == ("totals", 10, row["reads"])
