"""`ringmain save nats://...`: standard input or a file into a stream, as messages of whole records."""

import json
import os
import signal
import subprocess

import peers
import pytest
from brokers import Broker
from publishing import lines, read_log


def test_a_file_is_stored_whole_and_the_command_ends_once_it_is(bench: peers.Bench, broker: Broker) -> None:
    data = lines(5_000_000)
    saver = bench.ringmain("save", "--input", bench.file(data), broker.url("events"))
    assert saver.wait() == 0, saver.stderr
    (connection,) = read_log(broker).connections.values()
    assert peers.sha256(connection.data) == peers.sha256(data)
    assert connection.verdicts == [("ended", len(data))]
    assert connection.peer == str(bench.folder / "input")
    assert max(map(len, connection.messages)) <= 256 << 10
    assert saver.stderr == ""


def test_what_a_pipe_brings_is_stored_at_once_and_a_last_record_is_completed(
    bench: peers.Bench, broker: Broker
) -> None:
    saver = bench.ringmain("save", broker.url("events"), stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    saver.process.stdin.write(b"one\ntwo\nthr")
    saver.process.stdin.flush()
    peers.eventually(lambda: broker.stored() > 0, "two lines in the stream")
    (connection,) = read_log(broker).connections.values()
    assert connection.data == b"one\ntwo\n"
    saver.process.stdin.write(b"ee")
    saver.process.stdin.close()
    assert saver.wait() == 0
    (connection,) = read_log(broker).connections.values()
    assert connection.data == b"one\ntwo\nthree\n"


def test_totals_tell_what_is_stored(bench: peers.Bench, broker: Broker) -> None:
    stats = bench.folder / "stats"
    options = ("--stats-file", stats, "--stats-interval", "50ms")
    saver = bench.ringmain("save", *options, broker.url("events"), stdin=subprocess.PIPE)
    assert saver.process.stdin is not None

    def last(connections: int, size: int) -> bool:
        rows = [json.loads(line) for line in stats.read_text().splitlines()] if stats.exists() else []
        found = [(row["connections"], row["accepted"], row["bytes"]) for row in rows if "event" in row]
        return found[-1:] == [(connections, 1, size)]

    saver.process.stdin.write(b"one\ntwo\nthr")
    saver.process.stdin.flush()
    peers.eventually(lambda: last(1, 8), "a row of what is stored")
    saver.process.stdin.close()
    assert saver.wait() == 0
    assert last(0, 12)


def test_a_signal_ends_a_pipe_properly_after_what_was_read(bench: peers.Bench, broker: Broker) -> None:
    saver = bench.ringmain("save", broker.url("events"), stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    saver.process.stdin.write(b"one\n")
    saver.process.stdin.flush()
    peers.eventually(lambda: broker.stored() > 0, "a line in the stream")
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143
    (connection,) = read_log(broker).connections.values()
    assert (connection.data, connection.verdicts) == (b"one\n", [("ended", 4)])


@pytest.mark.parametrize(
    ("kind", "data"), [("length:4be", b"\0\0\0\3abc" * 50_000), ("octet-counting", b"3 abc" * 50_000)]
)
def test_frames_are_cut_where_they_end(bench: peers.Bench, broker: Broker, kind: str, data: bytes) -> None:
    frame = 7 if kind == "length:4be" else 5
    saver = bench.ringmain(
        "save", "--framing", kind, "--message-size", 10_000, "-I", bench.file(data), broker.url("events")
    )
    assert saver.wait() == 0, saver.stderr
    (connection,) = read_log(broker).connections.values()
    assert connection.data == data
    assert all(len(message) % frame == 0 and len(message) <= 10_000 for message in connection.messages)


@pytest.mark.parametrize(
    ("arguments", "data", "code", "words"),
    [
        (["--framing", "length:4be"], b"\0\0\0\3abc\0\0\0\3a", 18, "ends within a frame"),
        (["--framing", "octet-counting"], b"3 abcxyz", 8, "no record begins with"),
        ([], b"fine\n" + b"x" * 1_100_000 + b"\nmore\n", 63, "longer than"),
    ],
)
def test_an_input_that_is_no_stream_of_records_costs_what_is_behind_and_one_line(
    bench: peers.Bench, broker: Broker, arguments: list[str], data: bytes, code: int, words: str
) -> None:
    saver = bench.ringmain("save", *arguments, "-I", bench.file(data), broker.url("events"))
    assert saver.wait() == code, saver.stderr
    assert words in saver.stderr
    assert saver.stderr.count("\n") == 1
    (connection,) = read_log(broker).connections.values()
    assert connection.data == data[: len(connection.data)] != b""
    assert [verdict for verdict, _ in connection.verdicts] == ["stopped"]


def test_one_that_is_told_to_end_while_there_is_no_server_yet_ends_at_once(bench: peers.Bench) -> None:
    port = peers.free_port()
    saver = bench.ringmain("save", "-v", "--retry", "forever", f"nats://127.0.0.1:{port}/events", stdin=subprocess.PIPE)
    saver.says("trying again")
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143
    assert "bytes under way" not in saver.stderr


def test_a_record_that_is_too_long_may_be_left_out(bench: peers.Bench, broker: Broker) -> None:
    data = b"fine\n" + b"x" * 1_100_000 + b"\nmore\n"
    saver = bench.ringmain("save", "--long-records", "skip", "-I", bench.file(data), broker.url("events"))
    assert saver.wait() == 0, saver.stderr
    (connection,) = read_log(broker, gaps=True).connections.values()
    assert connection.data == b"fine\nmore\n"
    assert "skipped" in saver.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nats://127.0.0.1:1/events"], 7, "connection refused"),
        (["nats://localhost"], 2, "it names no NATS stream or subject"),
        (["--message-size", "1M", "--max-in-flight", "64K", "nats://127.0.0.1:1/events"], 2, "--max-in-flight"),
        (["--message-size", "1M", "tcp://127.0.0.1:1"], 2, "--message-size"),
        (["--listen", "nats://127.0.0.1:1/events"], 2, "--listen"),
        (["--path", "kernel", "nats://127.0.0.1:1/events"], 2, "--path"),
        (["--create-stream", "A.B", "nats://127.0.0.1:1/events"], 2, "--create-stream"),
        (["nats://127.0.0.1:1/events.*"], 2, "wildcard"),
        (["nats://127.0.0.1:1/events.{what}"], 2, "braces"),
        (["nats://127.0.0.1:1/events..a"], 2, "empty part"),
        (["--framing", "nul", "--delimiter", ";", "nats://127.0.0.1:1/events"], 2, "--framing"),
    ],
)
def test_what_makes_no_sense_or_is_not_there_is_one_line(
    bench: peers.Bench, arguments: list[str], code: int, words: str
) -> None:
    saver = bench.ringmain("save", *arguments)
    assert saver.wait() == code, saver.stderr
    assert words in saver.stderr
    assert saver.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["save", "relay"])
def test_without_nats_py_the_line_says_what_to_install(bench: peers.Bench, verb: str) -> None:
    (bench.folder / "nats").mkdir()
    (bench.folder / "nats" / "__init__.py").write_text('raise ModuleNotFoundError("No module named nats", name="nats")')
    ends = ["tcp://127.0.0.1:0", "nats://127.0.0.1:1/events"][verb == "save" :]
    program = bench.ringmain(verb, *ends, env={**os.environ, "PYTHONPATH": str(bench.folder)})
    assert program.wait() == 2, program.stderr
    assert "pip install 'ringmain[nats]'" in program.stderr
    assert program.stderr.count("\n") == 1
