"""`ringmain bench save` and `bench load`: load tests of other people's receivers and senders."""

import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from measuring import checked, measured
from streams import server_at

from ringmain._records import after

LINES = b"".join(b"%d %s\n" % (number, b"x" * (number % 97)) for number in range(3000))


@pytest.fixture
def lines(bench: peers.Bench) -> Path:
    return bench.file(LINES, "lines")


@contextlib.contextmanager
def receiver(bench: peers.Bench, *address: str, options: str = "") -> Iterator[tuple[str, Path]]:
    """Start a socat that writes what it receives to a file; yield where it listens, and the file."""
    port, path = peers.free_port(), bench.folder / "received"
    kind = address[0] if address else "TCP-LISTEN"
    command = [peers.need("socat"), "-u", f"{kind}:{port},bind=127.0.0.1,reuseaddr{options}", f"OPEN:{path},creat"]
    program = bench.start(command)
    peers.wait_for_port(port)
    yield f"127.0.0.1:{port}", path
    assert program.wait() == 0


def repeated(size: int) -> bytes:
    return (LINES * (size // len(LINES) + 1))[:size]


def test_a_file_is_replayed_until_as_much_was_sent_as_was_asked_for(bench: peers.Bench, lines: Path) -> None:
    size = 3 * len(LINES) + 12_345
    with receiver(bench) as (endpoint, path):
        result = measured("save", endpoint, "--input", lines, "-n", size)
    data = path.read_bytes()
    assert peers.sha256(data) == peers.sha256(repeated(size))
    end = result["end"]
    assert end["sum_sent"]["bytes"] == end["sum_received"]["bytes"] == size
    assert end["sum_sent"]["records"] == end["sum_received"]["records"] == data.count(b"\n")
    assert end["host"]["writes"] > 0
    assert result["verdict"] == "ended"


def test_it_goes_on_for_the_time_that_was_asked_for(bench: peers.Bench, lines: Path) -> None:
    with receiver(bench) as (endpoint, path):
        result = measured("save", endpoint, "--input", lines, "-t", "300ms")
    size = result["end"]["sum_received"]["bytes"]
    assert size > 0
    assert peers.sha256(path) == peers.sha256(repeated(size))
    assert sum(it["sum"]["bytes"] for it in result["intervals"]) == size


@pytest.mark.parametrize("rate", [1000, 200_000])
def test_a_paced_replay_sends_whole_records_and_not_too_many(bench: peers.Bench, rate: int) -> None:
    path = bench.file(LINES + b"the last line has no end", "unfinished")
    with receiver(bench) as (endpoint, received):
        result = measured("save", endpoint, "--input", path, "-t", "500ms", "--records-per-second", rate)
    sent, data = result["end"]["sum_sent"], received.read_bytes()
    assert peers.sha256(data) == peers.sha256(repeated(sent["bytes"]))
    assert data.endswith(b"\n")
    assert 0 < sent["records"] == data.count(b"\n") <= rate * 0.5 + 0.1 * rate
    assert result["start"]["test_start"]["records_per_second"] == rate


def test_a_paced_replay_of_so_many_bytes_ends_with_a_whole_record(bench: peers.Bench, lines: Path) -> None:
    with receiver(bench) as (endpoint, received):
        result = measured("save", endpoint, "-i", lines, "-n", 10_000, "--records-per-second", 10_000)
    data = received.read_bytes()
    assert data == LINES[: LINES.rindex(b"\n", 0, 10_000) + 1]
    assert result["end"]["sum_sent"]["bytes"] == len(data)


def test_a_receiver_may_speak_tls(bench: peers.Bench, certificates: Certificates, lines: Path) -> None:
    options = f",cert={certificates.server},verify=0"
    with receiver(bench, "OPENSSL-LISTEN", options=options) as (endpoint, path):
        trust = ("--cafile", certificates.ca, "--server-name", "localhost")
        result = measured("save", f"tcps://{endpoint}", "--input", lines, "-n", "2M", *trust)
    assert peers.sha256(path) == peers.sha256(repeated(2 << 20))
    assert result["start"]["tls"]["version"] == "TLSv1.3"


def test_a_receiver_may_connect(bench: peers.Bench, lines: Path) -> None:
    port_file = bench.folder / "port"
    command = [*peers.RINGMAIN, "bench", "save", "--listen", "127.0.0.1:0", "-i", str(lines), "-n", "1M", "--json"]
    program = bench.start([*command, "--port-file", str(port_file)], stdout=subprocess.PIPE)
    port = int(peers.eventually(lambda: port_file.exists() and port_file.read_text(), "the port file"))
    with peers.connect(port) as sock:
        assert peers.sha256(peers.read_all(sock)) == peers.sha256(repeated(1 << 20))
    assert program.wait() == 0
    assert program.process.stdout is not None
    assert checked(program.process.stdout.read().decode())["end"]["sum_sent"]["bytes"] == 1 << 20


def test_what_got_through_is_told_also_when_the_receiver_breaks(bench: peers.Bench, lines: Path) -> None:
    got: list[int] = []

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        size = 0
        while size < 500_000:
            size += len(sock.recv(1 << 16))
        # What it has read need not be acknowledged yet; with a byte of its own that has arrived it is.
        sock.sendall(b"x")
        peers.eventually(lambda: peers.unacknowledged(sock) == 0, "the arrival of a byte")
        got.append(size)
        peers.close_with_reset(sock)

    with server_at() as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        result = measured("save", endpoint, "--input", lines, "-t", "20s", code=55)
        thread.join(peers.TIMEOUT)
    assert result["verdict"] == "reset"
    assert "reset" in result["error"]
    end = result["end"]
    # What was acknowledged is told, and no more than was sent.
    assert got[0] <= end["sum_received"]["bytes"] <= end["sum_sent"]["bytes"]
    assert 0 < end["sum_received"]["records"] <= end["sum_sent"]["records"]


@pytest.mark.parametrize("way", ["connect", "listen"])
def test_a_peer_that_takes_a_few_bytes_is_told_to_have_taken_all_of_them(bench: peers.Bench, way: str) -> None:
    """Whoever dials counts its SYN as an acknowledged byte, whoever listens does not: neither is told."""
    path = bench.file(b"0123456789\n" * 1000, "few")
    options = ("--input", path, "-t", "60s", "--records-per-second", "1", "--json")
    with server_at() as listener, contextlib.ExitStack() as stack:
        port = listener.getsockname()[1]
        if way == "connect":
            program = bench.ringmain("bench", "save", f"127.0.0.1:{port}", *options, stdout=subprocess.PIPE)
            sock = stack.enter_context(listener.accept()[0])
        else:
            listener.close()
            program = bench.ringmain("bench", "save", "--listen", f"127.0.0.1:{port}", *options, stdout=subprocess.PIPE)
            peers.wait_for_port(port)
            sock = stack.enter_context(peers.connect(port))
        assert sock.recv(1 << 16) == b"0123456789\n"
        sock.sendall(b"x")
        peers.eventually(lambda: peers.unacknowledged(sock) == 0, "the arrival of a byte")
        peers.close_with_reset(sock)
        assert program.wait() == 55
    assert program.process.stdout is not None
    end = checked(program.process.stdout.read().decode(), 55)["end"]
    assert 11 <= end["sum_received"]["bytes"] <= end["sum_sent"]["bytes"]


def test_a_pause_between_records_outlasts_neither_the_test_nor_the_peer(bench: peers.Bench, lines: Path) -> None:
    paced = ("--input", lines, "--records-per-second", "0.001")  # the first is due in a quarter of an hour
    with receiver(bench) as (endpoint, path):
        assert measured("save", endpoint, *paced, "-t", "300ms")["verdict"] == "ended"
    assert path.read_bytes() == b""
    with server_at() as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        options = (*paced, "-t", "1h", "--json-stream")
        program = bench.ringmain("bench", "save", endpoint, *options, stdout=subprocess.PIPE)
        sock, _ = listener.accept()
        assert program.process.stdout is not None
        assert json.loads(program.process.stdout.readline())["event"] == "start"
        peers.close_with_reset(sock)
        assert program.wait() == 55


def test_a_receiver_that_takes_nothing_is_given_up(bench: peers.Bench, lines: Path) -> None:
    with server_at() as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        result = measured("save", endpoint, "--input", lines, "-t", "60s", "--idle-timeout", "300ms", code=28)
    assert result["verdict"] == "timed out"
    assert "it took nothing for 0.3 s" in result["error"]
    assert result["end"]["host"]["stalls"] > 0


@pytest.mark.parametrize("way", ["listen", "connect"])
def test_a_senders_bytes_and_lines_are_counted(bench: peers.Bench, lines: Path, way: str) -> None:
    socat, port = peers.need("socat"), peers.free_port()
    command = [*peers.RINGMAIN, "bench", "load", f"127.0.0.1:{port}", "--json"]
    if way == "listen":
        program = bench.start(command, stdout=subprocess.PIPE)
        peers.wait_for_port(port)
        bench.start([socat, "-u", f"OPEN:{lines}", f"TCP:127.0.0.1:{port}"])
    else:
        bench.start([socat, "-u", f"OPEN:{lines}", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr"])
        peers.wait_for_port(port)
        program = bench.start([*command, "--connect"], stdout=subprocess.PIPE)
    assert program.wait() == 0
    assert program.process.stdout is not None
    result = checked(program.process.stdout.read().decode())
    received = result["end"]["sum_received"]
    assert (received["bytes"], received["records"]) == (len(LINES), 3000)
    assert result["end"]["host"]["average_block"] * result["end"]["host"]["blocks"] == len(LINES)
    assert result["verdict"] == "ended"


def test_a_sender_is_tested_for_a_time_or_until_a_signal(bench: peers.Bench) -> None:
    for options, code, error in ((["-t", "300ms"], 0, None), ([], 130, "interrupted")):
        with server_at() as listener, contextlib.ExitStack() as stack:
            command = ["bench", "load", "--connect", f"127.0.0.1:{listener.getsockname()[1]}", "--json", *options]
            program = bench.ringmain(*command, stdout=subprocess.PIPE)
            sock = stack.enter_context(listener.accept()[0])
            with contextlib.suppress(OSError):
                for _ in range(100):
                    sock.sendall(LINES)
                if code:
                    peers.eventually(lambda sock=sock: peers.unread_at(sock.getpeername()[1]) == 0, "its reading")
                    program.signal(signal.SIGINT)
            assert program.wait() == code
            assert program.process.stdout is not None
            result = checked(program.process.stdout.read().decode(), code)
            assert result.get("error") == error
            assert result["verdict"] == "stopped"
            assert 0 < result["end"]["sum_received"]["bytes"] <= 100 * len(LINES)


def test_a_sender_that_breaks_is_an_error_with_figures(bench: peers.Bench) -> None:
    with server_at() as listener:
        command = ["bench", "load", "--connect", f"127.0.0.1:{listener.getsockname()[1]}", "--json"]
        program = bench.ringmain(*command, stdout=subprocess.PIPE)
        sock, _ = listener.accept()
        sock.sendall(LINES)
        peers.eventually(lambda: peers.unread_at(sock.getpeername()[1]) == 0, "its reading")
        peers.close_with_reset(sock)
        assert program.wait() == 56
    assert program.process.stdout is not None
    result = checked(program.process.stdout.read().decode(), 56)
    assert result["end"]["sum_received"]["records"] == 3000
    assert len(program.stderr.splitlines()) == 1


BAD: list[tuple[list[Any], int, str]] = [
    (["save", "127.0.0.1:1"], 2, "--input"),
    (["save", "127.0.0.1:1", "--input", "/nonexistent"], 26, "choose a regular file"),
    (["save", "127.0.0.1:1", "--input", "/dev/null"], 26, "choose a regular file"),
    (["save", "127.0.0.1:1", "--input", "/"], 26, "choose a regular file"),
    (["save", "127.0.0.1:1", "--input", __file__], 7, "connection refused"),
    (["save", "127.0.0.1:1", "--input", __file__, "-t", "1s", "-n", "1"], 2, "--time with --bytes"),
    (["save", "127.0.0.1:1", "--input", __file__, "--records-per-second", "0"], 2, "--records-per-second"),
    (["load"], 2, "ENDPOINT"),
    (["load", "--connect", "127.0.0.1:1"], 7, "connection refused"),
    (["load", "nonsense"], 2, "nonsense"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD)
def test_bad_arguments_are_one_line_and_json(arguments: list[Any], code: int, words: str) -> None:
    assert words in measured(*arguments, code=code)["error"]


def test_a_file_that_holds_nothing_to_send_is_one_line(bench: peers.Bench) -> None:
    empty, endless = bench.file(b"", "empty"), bench.file(b"no end", "endless")
    assert "it is empty" in measured("save", "127.0.0.1:1", "--input", empty, code=26)["error"]
    paced = ("--records-per-second", "5")
    assert "no line ends in it" in measured("save", "127.0.0.1:1", "--input", endless, *paced, code=26)["error"]


def test_people_and_event_readers_get_theirs(bench: peers.Bench, lines: Path) -> None:
    for form in ((), ("--json-stream",)):
        with receiver(bench) as (endpoint, path):
            command = [*peers.RINGMAIN, "bench", "save", endpoint, "-i", str(lines), "-n", "1M", *form]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        assert done.stderr == ""
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(repeated(1 << 20)).digest()
        path.unlink()
        rows = done.stdout.splitlines()
        if form:
            assert [json.loads(row)["event"] for row in (rows[0], rows[-1])] == ["start", "result"]
            checked(json.dumps(json.loads(rows[-1])["data"]))
        else:
            head = next(at for at, row in enumerate(rows) if row.endswith("plain: ended"))
            assert rows[head - 1] == ""
            assert [row.split()[0] for row in rows[head + 2 : head + 5]] == ["sent", "acknowledged", "CPU"]
            assert " retransmits, RTT " in rows[head + 5]


def test_records_are_found_behind_each_other() -> None:
    data = b"a\nbb\n\nccc"
    assert after(data, 10, 0, 0) == (0, 0)
    assert after(data, 10, 0, 1) == (2, 1)
    assert after(data, 10, 2, 2) == (6, 2)
    assert after(memoryview(bytearray(data)), 10, 0, 100) == (6, 3)
    assert after(data, 10, 6, 100) == (6, 0)
    assert after(data, 10, len(data), 1) == (len(data), 0)
    assert after(b"", 10, 0, 1) == (0, 0)
    for start in (-1, len(data) + 1):
        with pytest.raises(IndexError):
            after(data, 10, start, 1)
    with pytest.raises(TypeError):
        after("text", 10, 0, 1)  # type: ignore[arg-type]
