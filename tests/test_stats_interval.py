"""`--stats-interval`: rows of totals between those of the connections, which stay as they are."""

import contextlib
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import peers
import pytest
from streams import server_at

OFTEN = ["--stats-interval", "50ms"]


def totals(path: Path) -> list[dict[str, Any]]:
    return [row for row in peers.rows_in(path) if row.get("event") == "totals"]


def last(path: Path, **figures: Any) -> bool:
    """Tell whether the last row of totals has these."""
    found = totals(path)
    return bool(found) and figures.items() <= found[-1].items()


@pytest.mark.parametrize("where", [[], ["-O", "{number}"], ["--exec", "cat >&2"]], ids=["merged", "files", "commands"])
def test_totals_tell_of_all_who_were_and_are_there(bench: peers.Bench, tmp_path: Path, where: list[str]) -> None:
    stats = tmp_path / "stats"
    options = ["--max-connections", 2, "--gate", "refuse", "--stats-file", stats, *OFTEN, *where]
    loader, port = bench.listening("load", *options, cwd=tmp_path)
    peers.eventually(lambda: last(stats, connections=0, accepted=0, peak=0, bytes=0), "a row of nobody")
    with peers.connect(port) as first, peers.connect(port) as second:
        first.sendall(b"12345\n")
        second.sendall(b"123\n")
        peers.eventually(lambda: last(stats, connections=2, accepted=2, peak=2, bytes=10), "a row of two")

        def refused() -> bool:
            try:
                with peers.connect(port) as third:
                    third.recv(1)
            except ConnectionResetError:
                pass
            return last(stats, connections=2) and totals(stats)[-1]["refused"] > 0

        peers.eventually(refused, "one that is refused")
    peers.eventually(lambda: last(stats, connections=0, accepted=2, peak=2, bytes=10), "a row of those who have left")
    with peers.connect(port) as sock:
        sock.sendall(b"7\n")
        peers.eventually(lambda: last(stats, connections=1, accepted=3, peak=2, bytes=12), "a row of the next one")
        loader.signal(signal.SIGTERM)
        assert loader.wait() == 143
    found = peers.rows_in(stats)
    final, connections = found[-1], [row for row in found if "event" not in row]
    assert final["event"] == "totals"
    assert final["refused"] > 0
    assert (final["connections"], final["accepted"], final["peak"], final["bytes"]) == (0, 3, 2, 12)
    assert len(connections) == 3
    assert final["reads"] == sum(row["reads"] for row in connections)
    assert all(row["peer"].startswith("127.0.0.1:") for row in connections)
    seconds = [row["seconds"] for row in totals(stats)]
    assert seconds == sorted(seconds)


def test_totals_count_what_was_dropped_and_skipped(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    options = ["--max-connections", 2, "--max-record", 100, "--long-records", "skip", "--stats-file", stats, *OFTEN]
    loader, port = bench.listening("load", *options)
    sock = peers.connect(port)
    sock.sendall(b"x" * 500 + b"\n" + b"half")
    peers.eventually(
        lambda: last(stats, bytes=505, skipped_records=1, skipped_bytes=501, dropped_bytes=0), "the skipped"
    )
    peers.close_with_reset(sock)
    peers.eventually(lambda: last(stats, connections=0, skipped_records=1, dropped_bytes=4), "the dropped")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


def test_one_connection_at_a_time_has_totals_too(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "--stats-file", stats, *OFTEN)
    for _ in range(3):
        peers.send_in_thread(port, b"1234").join()
    peers.eventually(lambda: last(stats, connections=0, accepted=3, peak=1, bytes=12), "all three")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


def test_save_has_totals_too(bench: peers.Bench, tmp_path: Path) -> None:
    stats, data = tmp_path / "stats", bench.file(b"12345")
    saver, port = bench.listening("save", "--listen", "--input", data, "--stats-file", stats, *OFTEN)
    for _ in range(2):
        with peers.connect(port) as sock:
            assert peers.read_all(sock) == b"12345"
    peers.eventually(lambda: last(stats, connections=0, accepted=2, peak=1, bytes=10), "both")
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143


def test_totals_of_a_broadcast_count_each_client(bench: peers.Bench, tmp_path: Path) -> None:
    stats, data = tmp_path / "stats", bench.file(bytes(8 << 20))
    args = ("--listen", "--max-connections", "3", "--input", data, "--stats-file", stats)
    saver, port = bench.listening("save", *args, *OFTEN)
    with peers.connect(port) as one, peers.connect(port) as other:
        peers.eventually(lambda: last(stats, connections=2, accepted=2, peak=2), "both are there")
        assert {len(peers.read_all(one)), len(peers.read_all(other))} == {8 << 20}
    peers.eventually(lambda: last(stats, connections=0, accepted=2, peak=2, bytes=16 << 20), "both have ended")
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143


@pytest.mark.parametrize("one_way", [False, True], ids=["both ways", "one way"])
def test_a_relay_has_totals_of_both_sides(bench: peers.Bench, tmp_path: Path, one_way: bool) -> None:
    stats, ways = tmp_path / "stats", ["--one-way"] * one_way
    with server_at() as listener:
        there = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        options = ["--max-connections", 2, "--gate", "refuse", "--stats-file", stats, *OFTEN, *ways]
        relay, port = bench.relaying(there, *options)
        peers.eventually(lambda: last(stats, connections=0, accepted=0, peak=0), "a row of nobody")
        with contextlib.ExitStack() as stack:
            clients = []
            for text in (b"12345", b"123"):
                clients.append(stack.enter_context(peers.connect(port)))
                server = stack.enter_context(listener.accept()[0])
                clients[-1].sendall(text)
                assert server.recv(10) == text
                if not one_way:
                    server.sendall(text + text)
                    assert clients[-1].recv(20, socket.MSG_WAITALL) == text + text

            def two() -> bool:
                answered = one_way or totals(stats)[-1]["destination"]["bytes"] == 16
                return last(stats, connections=2, accepted=2, peak=2) and sent() == 8 and answered

            def sent() -> int:
                return int(totals(stats)[-1]["source"]["bytes"])

            peers.eventually(two, "a row of two")
            peers.eventually(lambda: peers.is_reset(port) and totals(stats)[-1]["refused"] > 0, "one that is refused")
        peers.eventually(lambda: last(stats, connections=0, accepted=2, peak=2), "a row of those who have left")
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 143
    found = peers.rows_in(stats)
    final, passages = found[-1], [row for row in found if "event" not in row]
    assert (final["event"], final["connections"], final["accepted"], final["peak"]) == ("totals", 0, 2, 2)
    for side, size in (("source", 8), ("destination", 16)):
        if side == "destination" and one_way:
            assert side not in final
        else:
            assert final[side]["bytes"] == sum(row[side]["bytes"] for row in passages) == size
            assert final[side]["reads"] == sum(row[side]["reads"] for row in passages)
    assert "bytes" not in final


def test_a_relay_from_or_to_a_file_has_the_totals_of_save_and_load(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    relay, port = bench.relaying(str(tmp_path / "got"), "-o", "--stats-file", stats, *OFTEN)
    peers.send_in_thread(port, b"1234").join()
    assert relay.wait() == 0
    assert last(stats, connections=0, accepted=1, peak=1, bytes=4)
    there, port = bench.listening("load", "-o", stdout=subprocess.DEVNULL)
    assert bench.ringmain("relay", "--stats-file", stats, *OFTEN, tmp_path / "got", f"127.0.0.1:{port}").wait() == 0
    assert there.wait() == 0
    assert [(row["accepted"], row["bytes"]) for row in totals(stats)[-1:]] == [(1, 4)]
    assert len([row for row in peers.rows_in(stats) if "event" not in row]) == 2


def test_a_run_that_is_shorter_than_the_interval_has_totals_at_its_end(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "-o", "--stats-file", stats, "--stats-interval", "1h")
    peers.send_in_thread(port, b"1234").join()
    assert loader.wait() == 0
    assert [row.get("event") for row in peers.rows_in(stats)] == [None, "totals"]
    assert last(stats, connections=0, accepted=1, peak=1, bytes=4)


def test_a_run_that_does_not_begin_leaves_no_totals(bench: peers.Bench, tmp_path: Path) -> None:
    loader, port = bench.listening("load")
    other = bench.ringmain("load", "--stats-file", tmp_path / "stats", "--stats-interval", "1ms", f"127.0.0.1:{port}")
    assert other.wait() == 45
    assert not (tmp_path / "stats").exists()
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


def test_totals_need_a_file() -> None:
    command = [*peers.RINGMAIN, "load", *OFTEN, "127.0.0.1:0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=peers.TIMEOUT, check=False)
    assert run.returncode == 2
    assert "--stats-interval: there is no file for its rows; add --stats-file" in run.stderr
