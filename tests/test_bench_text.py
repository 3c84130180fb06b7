"""What people read of `ringmain bench`: tables that fit, few digits, a line a second, and what the kernel tells."""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
from typing import Any

import peers
import pytest
from measuring import checked, measured, serving

from ringmain.bench import table
from ringmain.bench.meter import Meter
from ringmain.bench.result import interval_of
from ringmain.bench.seconds import Seconds
from ringmain.bench.table import aligned, figure, size_of
from ringmain.bench.tcp_info import TcpInfo, bytes_acknowledged, congestion, of_sender, tcp_info

SO_ATTACH_FILTER, SO_DETACH_FILTER, TCP_CONGESTION = 26, 27, 13
SENDER = {"retransmits", "max_snd_cwnd", "max_rtt", "min_rtt", "mean_rtt"}
TCP = {"retransmits", "snd_cwnd", "rtt", "rttvar"}


def interval(start: float, end: float, size: int = 1 << 20, *, omitted: bool = False, **tcp: int) -> dict[str, Any]:
    it = {"start": start, "end": end, "sizes": [size, size], "omitted": omitted, "tcp": [tcp or None, None]}
    return interval_of(it, True)


# --- what the kernel tells ---


@contextlib.contextmanager
def connection() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as listener, peers.connect(listener.getsockname()[1]) as sock:
        accepted, _ = listener.accept()
        with accepted:
            yield sock, accepted


def test_what_was_sent_again_is_counted_and_everything_acknowledged() -> None:
    with connection() as (sender, receiver):
        before = tcp_info(sender)
        assert before is not None
        assert before.retransmits == 0
        # The other side's kernel drops whatever comes.
        dropped = struct.pack("HBBI", 0x06, 0, 0, 0)
        buffer = ctypes.create_string_buffer(dropped)
        receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(buffer)))
        acknowledged = bytes_acknowledged(sender)
        sender.sendall(b"x" * 100)
        peers.eventually(lambda: tcp_info(sender).retransmits > 0, "a retransmission")  # type: ignore[union-attr]
        receiver.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        peers.eventually(lambda: bytes_acknowledged(sender) == (acknowledged or 0) + 100, "an acknowledgement")
        after = tcp_info(sender)
        assert after is not None
        assert after.since(before)["retransmits"] == after.retransmits > 0
        assert after.snd_cwnd > 0 < after.rtt
        assert congestion(sender) == sender.getsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, 16).rstrip(b"\0").decode()


def test_where_the_kernel_tells_nothing_nothing_is_told() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert tcp_info(left) is congestion(left) is bytes_acknowledged(left) is None
    closed = socket.socket()
    closed.close()
    assert tcp_info(closed) is congestion(closed) is bytes_acknowledged(closed) is None


def test_a_meter_leaves_out_what_is_not_known(run: Any) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        with left, right:
            meter = Meter(1.0, 0.0, sending=True)
            meter.socks = [left]
            meter.start(1)
            meter.end(0)
        side = meter.side()
        assert side["tcp"] == [None]
        assert side["intervals"][0]["tcp"] == [None]

    run(main())
    it = interval(0, 1)
    assert not TCP & (set(it["sum"]) | set(it["streams"][0]))
    # One stream of which something is known is told of, and counts in the sum.
    it = interval(0, 1, retransmits=3, snd_cwnd=1, rtt=2, rttvar=1)
    assert it["sum"]["retransmits"] == 3
    assert [TCP & set(stream) for stream in it["streams"]] == [TCP, set()]


def test_no_round_trip_is_not_one_of_zero() -> None:
    assert TcpInfo(1, 10, 0, 0).since(None) == {"retransmits": 1, "snd_cwnd": 10}
    looks = [TcpInfo(2, 10, 0, 0), TcpInfo(5, 30, 40, 1), TcpInfo(6, 20, 60, 1)]
    told = of_sender(TcpInfo(2, 1, 0, 0), looks)
    assert told == {"retransmits": 4, "max_snd_cwnd": 30, "max_rtt": 60, "min_rtt": 40, "mean_rtt": 50}
    assert of_sender(None, looks[:1]) == {"retransmits": 2, "max_snd_cwnd": 10}
    assert of_sender(None, []) is None


@pytest.mark.parametrize(
    "way", [(), ("--reverse",), ("-P", "2"), ("-P", "2", "--processes", "--reverse")], ids=" ".join
)
def test_a_result_has_what_the_senders_kernel_tells(bench: peers.Bench, way: tuple[str, ...]) -> None:
    result = measured(serving(bench), "-t", "300ms", *way)
    end = result["end"]
    for stream in end["streams"]:
        assert set(stream["sender"]) >= SENDER
        assert not SENDER & set(stream["receiver"])
        assert 0 < stream["sender"]["min_rtt"] <= stream["sender"]["mean_rtt"] <= stream["sender"]["max_rtt"]
        assert stream["sender"]["max_snd_cwnd"] > 0
    assert end["sum_sent"]["retransmits"] == sum(it["sender"]["retransmits"] for it in end["streams"])
    assert "retransmits" not in end["sum_received"]
    with connection() as (sock, _):
        assert end["sender_tcp_congestion"] == end["receiver_tcp_congestion"] == congestion(sock)
    # While it goes on only the end that sends knows anything.
    told = [set(stream) for it in result["intervals"] for stream in it["streams"]]
    assert any(it >= TCP for it in told) == ("--reverse" not in way)
    if "--reverse" in way:
        assert not any(it & TCP for it in told)
        assert not any("retransmits" in it["sum"] for it in result["intervals"])


def test_names_of_what_the_kernel_tells_are_iperf3s(bench: peers.Bench) -> None:
    port = peers.free_port()
    bench.start([peers.need("iperf3"), "--server", "--one-off", "--port", str(port)])
    peers.wait_for_port(port)
    command = ["iperf3", "--client", "127.0.0.1", "--port", str(port), "--bytes", "4M", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    theirs = json.loads(done.stdout)
    assert set(theirs["intervals"][0]["streams"][0]) >= TCP
    assert set(theirs["end"]["streams"][0]["sender"]) >= SENDER
    assert "retransmits" in theirs["end"]["sum_sent"]
    assert {"sender_tcp_congestion", "receiver_tcp_congestion"} <= set(theirs["end"])


# --- what is read ---


def lines_of(arguments: list[Any], columns: int | None = None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    if columns is not None:
        environment["COLUMNS"] = str(columns)
    command = [*peers.RINGMAIN, "bench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_line_a_second_adds_up_to_the_result(bench: peers.Bench) -> None:
    lines = lines_of([serving(bench), "-n", "4M", "-L", "2M"])
    rows = [line.split() for line in lines[1 : lines.index("")]]
    times = [tuple(map(float, row[0].split("-"))) for row in rows]
    assert times[0][0] == 0
    assert all(after[0] == before[1] for before, after in itertools.pairwise(times))
    assert all(end - start >= 0.9 for start, end in times[:-1])
    assert len(rows) >= 2  # 2 s at the least
    assert sum(float(row[1]) * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}[row[2]] for row in rows) == pytest.approx(
        4 << 20, rel=0.01
    )


def test_seconds_are_made_of_shorter_intervals_and_the_warm_up_stands_alone() -> None:
    seconds = Seconds(80)
    lines = seconds.add(interval(0, 0.25, omitted=True))
    assert lines == []
    for at in range(4):
        known = {"retransmits": at, "snd_cwnd": 1, "rtt": 1000 * at, "rttvar": 1}
        lines += seconds.add(interval(0.25 + at / 2, 0.75 + at / 2, **known))
    lines += seconds.add(interval(2.25, 2.26)) + seconds.add(interval(2.26, 2.27, 0))
    assert [line.split()[0] for line in lines] == ["seconds", "0.00-0.25", "0.25-1.25", "1.25-2.25"]
    assert lines[1].endswith("(warm-up)")
    # It has no columns for what the first interval did not tell.
    assert lines[2].split() == ["0.25-1.25", "4.00", "MiB", "0.0042", "0.0336"]
    assert [line.split()[0] for line in seconds.rest()] == ["2.25-2.27"]
    assert seconds.rest() == []


def test_seconds_have_what_is_known_and_what_fits() -> None:
    known = {"retransmits": 7, "snd_cwnd": 1, "rtt": 1500, "rttvar": 1}
    for width in (80, 50, 40, 10):
        lines = Seconds(width).add(interval(0, 1, **known))
        assert all(len(line) <= max(width, 36) for line in lines)
        assert lines[1].split()[:4] == ["0.00-1.00", "2.00", "MiB", "0.0021"]
    assert Seconds(80).add(interval(0, 1, **known))[1].split()[-2:] == ["7", "1.50"]
    # A second in which nothing moved has a line as well.
    assert Seconds(80).add(interval(0, 1, 0))[1].split() == ["0.00-1.00", "0", "B", "0", "0"]


@pytest.mark.parametrize("way", [(), ("--reverse",), ("-P", "3")], ids=" ".join)
def test_tables_fit_into_80_columns_and_into_those_that_there_are(bench: peers.Bench, way: tuple[str, ...]) -> None:
    endpoint = serving(bench)
    for columns in (None, 80, 40):
        lines = lines_of([endpoint, "-t", "200ms", *way], columns)
        rows = [line for line in lines if line.startswith(("sent", "received"))]
        assert len(rows) == 2 if columns != 40 else len(rows) > 2
        assert max(map(len, rows)) <= (columns or 80)


def test_the_widest_tables_fit() -> None:
    work = {"seconds": 3600.0, "cpu_user_seconds": 3600.0, "cpu_system_seconds": 3000.0, "cpu_seconds_per_gb": 999.4}
    work |= {"average_call": 1023 << 10, "stalls": 123_456}
    total = {"seconds": 3600.0, "bytes": 1023 << 30, "bits_per_second": 444.4e9}
    counted = {**total, "records": 10**9, "records_per_second": 1e7}
    sender = {"retransmits": 12_345, "max_snd_cwnd": 1023 << 10, "max_rtt": 1e6, "min_rtt": 10, "mean_rtt": 5000}
    start = {"connected": [{"remote_host": "::1", "remote_port": 5201}], "tls": None}
    start["test_start"] = {"num_streams": 1, "reverse": 0}
    end = {"sum_sent": {**total, "retransmits": 12_345}, "sum_received": total, "host": work, "remote": work}
    end |= {"streams": [{"sender": sender, "receiver": {}}], "sender_tcp_congestion": "cubic"}
    names = ("receive plain to blocks", "send TLS from pipe")
    compared = {"ratio": 0.123, "low": 0.123, "high": 12.3, "verdict": "inconclusive"}
    replayed = {"start": start, "verdict": "timed out", "end": {**end, "streams": []}}
    replayed["end"] |= {"sum_sent": {**counted, **sender}, "sum_received": counted}
    for text in (
        table.result_table({"start": start, "end": end}, 80),
        table.tests_table({name: {"end": end} for name in names}, 80),
        table.verdict_table({it: {"figures": {"cpu_seconds_per_gb": compared}, "verdict": "ok"} for it in names}, 80),
        table.replay_table(replayed, 80),
    ):
        assert max(map(len, text.splitlines())) <= 80, text
        assert "\n\n" not in text.partition("\n\nverdict")[0]  # it was not folded


def test_what_is_too_wide_is_folded_with_its_names() -> None:
    rows = [("", "one\ntwo", "three"), ("a name", "1.5", "12.25"), ("b", "-", "7"), ("c", "10", "x 1")]
    assert aligned(rows, 80).splitlines() == [
        "         one",
        "         two  three",
        "a name   1.5  12.25",
        "b          -   7",
        "c       10      x 1",
    ]
    parts = aligned(rows, 14).split("\n\n")
    assert [part.splitlines()[-3] for part in parts] == ["a name   1.5", "a name  12.25"]
    assert not any(part.startswith("\n") for part in parts)
    assert aligned(rows, 1).count("a name") == 2  # no column is lost where none fits


def test_figures_have_few_digits() -> None:
    values = [None, 0, 0.00001, 0.000123, 0.0123, 0.1234, 1.2345, 12.345, 123.45, 1234.5, 123_456.7]
    expected = ["-", "0", "0.0000", "0.0001", "0.0123", "0.123", "1.23", "12.3", "123", "1234", "123457"]
    assert [figure(value) for value in values] == expected
    assert [size_of(it) for it in (0, 1, 1023, 1024, 1500, 1023 << 10, 1 << 60)] == [
        *("0 B", "1 B", "1023 B", "1.00 KiB", "1.46 KiB", "1023 KiB", "1024 PiB")
    ]


@pytest.mark.parametrize("form", [(), ("--json-stream",)], ids=["text", "events"])
def test_a_reader_who_leaves_ends_the_measurement(bench: peers.Bench, form: tuple[str, ...]) -> None:
    command = ["bench", serving(bench), "-t", "1h", "-O", "0", *form]
    client = bench.ringmain(*command, stdout=subprocess.PIPE)
    assert client.process.stdout is not None
    assert client.process.stdout.readline()
    client.process.stdout.close()
    assert client.wait() == 0
    assert client.stderr == ""


def test_standard_output_that_is_full_ends_the_measurement_in_a_line(bench: peers.Bench) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        client = bench.ringmain("bench", serving(bench), "-t", "1h", "-O", "0", stdout=full)
        assert client.wait() == 23
    assert re.fullmatch(r"ringmain: write to standard output: .*; free space or redirect it\n", client.stderr)
    assert os.strerror(errno.ENOSPC).lower() in client.stderr.lower()


def test_a_result_is_printed_whole_where_python_does_not_buffer_and_the_reader_is_late(bench: peers.Bench) -> None:
    command = [*peers.RINGMAIN, "bench", serving(bench), "-t", "1s", "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    program = bench.start(command, env=environment, stdout=subprocess.PIPE)
    pipe = program.process.stdout
    assert pipe is not None
    room = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1)  # the least that there is: a page
    peers.eventually(lambda: peers.unread(pipe) == room, "a full pipe")
    program.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, program.process.pid, os.WSTOPPED)
    program.signal(signal.SIGCONT)
    checked(pipe.read())
    assert program.wait() == 0
