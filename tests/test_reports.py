"""Port files, stats files and --output: whole, ours to remove, and never in the way of the bytes."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates


def serve_one(port: int, data: bytes, program: peers.Program, served: int) -> None:
    """Send a line to a verbose loader, and wait until it has told of the connection's end."""
    with peers.connect(port) as sock:
        sock.sendall(data)
    peers.eventually(lambda: program.stderr.count(": ended after") == served, "the end of the connection")


def rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_stats_file_on_a_full_disk_is_one_warning_and_the_bytes_go_on(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-v", "--stats-file", "/dev/full", stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    for number in range(1, 4):
        serve_one(port, b"line\n", loader, number)
        assert loader.process.stdout.readline() == b"line\n"
    assert loader.stderr.count("no space left on device; connections are served, and not reported") == 1
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


def test_a_row_that_finds_no_room_is_taken_back_whole(bench: peers.Bench, tmp_path: Path) -> None:
    stats = bench.file(json.dumps({"bytes": 0, "room": " " * 100_000}).encode() + b"\n", "stats")  # more than the log
    loader, port = bench.listening("load", "-v", "--stats-file", stats, stdout=subprocess.PIPE)
    serve_one(port, b"1", loader, 1)
    peers.eventually(lambda: len(rows(stats)) == 2, "the first row")
    size = stats.stat().st_size
    limits = resource.prlimit(loader.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(loader.process.pid, resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    for number in (2, 3):
        serve_one(port, b"22", loader, number)
    loader.says("file too large")
    resource.prlimit(loader.process.pid, resource.RLIMIT_FSIZE, limits)
    serve_one(port, b"333", loader, 4)
    peers.eventually(lambda: len(rows(stats)) == 3, "the row after the two that found no room")
    assert [row["bytes"] for row in rows(stats)] == [0, 1, 3]
    assert loader.stderr.count("file too large") == 1


def test_a_pipe_for_statistics_needs_no_reader_yet(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    os.mkfifo(stats)
    loader, port = bench.listening("load", "-v", "--stats-file", stats, stdout=subprocess.PIPE)
    serve_one(port, b"before the reader", loader, 1)
    with stats.open("rb") as reader:
        assert json.loads(reader.readline())["bytes"] == 17
        serve_one(port, b"after", loader, 2)
        assert json.loads(reader.readline())["bytes"] == 5
        loader.signal(signal.SIGTERM)
        assert reader.read() == b""
    assert loader.wait() == 143


def test_a_pipe_for_statistics_that_nobody_empties_holds_nothing_up(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    os.mkfifo(stats)
    loader, port = bench.listening("load", "-O", tmp_path / "got", "--stats-file", stats)
    data = b"".join(b"%d\n" % number for number in range(600))  # rows of some 200 bytes, in a pipe of 64 KiB
    for line in data.splitlines(keepends=True):
        with peers.connect(port) as sock:
            sock.sendall(line)
    peers.eventually(lambda: (tmp_path / "got").read_bytes() == data, "every client's line")
    peers.eventually(lambda: loader.stderr.count("not reported") == 1, "one warning")
    with stats.open("rb") as reader:
        loader.signal(signal.SIGTERM)
        assert loader.wait() == 143
        whole = reader.read()
    assert whole.endswith(b"\n")
    assert all(json.loads(line)["verdict"] == "ended" for line in whole.splitlines())


@pytest.mark.parametrize("signals", [0, 1, 2])
def test_a_port_file_of_another_process_is_left_alone(bench: peers.Bench, tmp_path: Path, signals: int) -> None:
    port_file = tmp_path / "port"
    first = bench.ringmain("load", "-o", "-v", "--path", "block", "--port-file", port_file, "127.0.0.1:0")
    peers.eventually(port_file.exists)
    port = int(port_file.read_text())
    second = bench.ringmain("load", "--port-file", port_file, "127.0.0.1:0")
    other = int(peers.eventually(lambda: port_file.read_text().removeprefix(f"{port}\n"), "the other port"))
    with peers.connect(port) as sock:
        sock.sendall(b"x")
        first.says("connected")
        for _ in range(signals):
            first.signal(signal.SIGTERM)
    assert first.wait() == (143 if signals else 0)
    assert int(port_file.read_text()) == other
    second.signal(signal.SIGTERM)
    assert second.wait() == 143
    assert list(tmp_path.iterdir()) == []


def test_a_port_file_that_cannot_be_put_in_place_leaves_nothing(bench: peers.Bench, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "port").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    for name in ("port", "pipe"):  # a file must not take the place of what is something else
        loader = bench.ringmain("load", "--port-file", folder / name, "127.0.0.1:0")
        assert loader.wait() == 23
        line = loader.stderr.splitlines()[-1]
        assert line == f"ringmain: write {folder / name}: not a regular file; choose another --port-file"
    assert sorted(path.name for path in folder.iterdir()) == ["pipe", "port"]
    assert (folder / "pipe").is_fifo()
    load = [*peers.RINGMAIN, "load", "--port-file", str(tmp_path / "port"), "127.0.0.1:0"]
    command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *load]
    crowded = subprocess.run(command, capture_output=True, text=True, timeout=peers.TIMEOUT, check=False)
    assert crowded.returncode == 23
    assert "file too large: ulimit -f allows 0 bytes; choose another --port-file" in crowded.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


REFUSALS: dict[str, tuple[list[str], int]] = {
    "malformed endpoint": (["nonsense"], 2),
    "malformed network": (["--allow", "everyone", "127.0.0.1:0"], 2),
    "no certificate": (["tcps://127.0.0.1:0"], 2),
    "unusable certificate": (["--certfile", "/dev/null", "tcps://127.0.0.1:0"], 58),
    "unknown service": (["127.0.0.1:no-such-service"], 6),
    "nobody listens": (["-c", "127.0.0.1:1"], 7),
    "another's address": (["192.0.2.77:0"], 45),
    "kernel path with TLS": (["--path", "kernel", "--self-signed", "tcps://127.0.0.1:0"], 2),
    "unusable port file": (["--port-file", "/none/port", "127.0.0.1:0"], 23),
    "unusable stats file": (["--stats-file", "/none/stats", "127.0.0.1:0"], 23),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_empties_no_file_and_makes_none(bench: peers.Bench, tmp_path: Path, case: str) -> None:
    arguments, code = REFUSALS[case]
    kept = bench.file(b"yesterday's data", "kept")
    new, stats = tmp_path / "new", tmp_path / "stats"
    options = [] if "--stats-file" in arguments else ["--stats-file", stats]
    for output in (kept, new):
        loader = bench.ringmain("load", "-O", output, *options, *arguments)
        assert loader.wait() == code, loader.stderr
        assert "Traceback" not in loader.stderr
    assert kept.read_bytes() == b"yesterday's data"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_signal_while_connecting_empties_no_file_and_makes_none(bench: peers.Bench, tmp_path: Path) -> None:
    kept = bench.file(b"yesterday's data", "kept")
    for output in (kept, tmp_path / "new"):
        with peers.full_backlog() as port:
            url = f"127.0.0.1:{port}"
            loader = bench.ringmain("load", "-c", "--connect-timeout", "30s", "-O", output, url)
            peers.eventually(lambda port=port: peers.is_connecting(port), "a connect under way")
            loader.signal(signal.SIGTERM)
            assert loader.wait() == 143
    assert kept.read_bytes() == b"yesterday's data"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "remedy"),
    [
        (["load", "-O", "./nodir/x", "tcp://127.0.0.1:0"], 23, "choose another --output"),
        (["save", "-I", "./nodir/x", "tcp://127.0.0.1:1"], 26, "choose another --input"),
        (["relay", "tcp://127.0.0.1:0", "./nodir/x"], 23, "choose another DESTINATION"),
        (["relay", "./nodir/x", "tcp://127.0.0.1:1"], 26, "choose another SOURCE"),
        (["relay", "/usr/bin", "tcp://127.0.0.1:1"], 26, "choose a file as SOURCE"),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, list) else None,
)
def test_a_file_that_cannot_be_used_is_called_what_it_was_given_as(
    arguments: list[str], code: int, remedy: str
) -> None:
    done = subprocess.run([*peers.RINGMAIN, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code
    assert done.stderr.endswith(f"; {remedy}\n")


@pytest.mark.parametrize("before", [None, b"yesterday's data, which was more"], ids=["new", "old"])
def test_output_has_what_came_and_nothing_of_what_was_there(
    bench: peers.Bench, tmp_path: Path, before: bytes | None
) -> None:
    if before is not None:
        (tmp_path / "got").write_bytes(before)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "got")
    loader, port = bench.listening("load", "-o", "-O", link)
    with peers.connect(port) as sock:
        sock.sendall(b"today's")
    assert loader.wait() == 0
    assert (tmp_path / "got").read_bytes() == b"today's"
    assert link.is_symlink()


def test_an_output_that_is_refused_is_not_made_for_it(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    # The last thing that can go wrong before bytes may come: the name is taken by a folder.
    (tmp_path / "folder").mkdir()
    loader = bench.ringmain(
        "load",
        "-O",
        tmp_path / "new",
        "--port-file",
        tmp_path / "folder",
        "--certfile",
        certificates.server,
        "tcps://127.0.0.1:0",
    )
    assert loader.wait() == 23
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
