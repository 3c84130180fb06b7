"""`load --exec`: a command a connection, which is its standard input, and what becomes of both."""

import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import peers
import pytest
from conftest import Certificates


def fill(sock: socket.socket) -> None:
    """Send until nobody takes more."""
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)


def children(program: peers.Program) -> list[int]:
    """Return the processes that a program has started and not heard the end of."""
    text = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("scheme", ["plain", "tls"])
@pytest.mark.parametrize("most", [1, 8])
def test_each_connection_is_the_standard_input_of_a_command(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, scheme: str, most: int
) -> None:
    stats = tmp_path / "stats"
    options = ["--tls", "--certfile", certificates.server] if scheme == "tls" else []
    command = f"cat > {tmp_path}/$RINGMAIN_NUMBER; echo $RINGMAIN_PEER $RINGMAIN_LISTENER"
    where = ["--exec", command, "--stats-file", stats]
    loader, port = bench.listening("load", *options, "--max-connections", most, *where, stdout=subprocess.PIPE)
    data = {peers.payload(500_000 + seed, seed) for seed in range(8)}
    for payload in data:
        with peers.connect_tls(port, certificates.ca) if options else peers.connect(port) as sock:
            sock.sendall(payload)
            if options:
                sock.unwrap()
    peers.eventually(lambda: len(peers.rows_in(stats)) == 8, "the rows")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert {peers.sha256(tmp_path / str(number)) for number in range(1, 9)} == {peers.sha256(it) for it in data}
    told = peers.rows_in(stats)
    assert [row["exec_exit"] for row in told] == [0] * 8
    assert loader.process.stdout is not None
    said = sorted(loader.process.stdout.read().decode().splitlines())
    assert said == sorted(f"{row['peer']} 127.0.0.1:{port}" for row in told)


def test_a_command_inherits_its_standard_descriptors_and_nothing_else(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    command = f"exec ls /proc/self/fd > {tmp_path}/fds-$RINGMAIN_NUMBER"
    loader, port = bench.listening("load", "--max-connections", 3, "--exec", command, "--stats-file", stats)
    with peers.connect(port), peers.connect(port):
        peers.eventually(lambda: len(peers.rows_in(stats)) == 2, "the rows")
    assert [it.read_text().split() for it in tmp_path.glob("fds-*")] == [["0", "1", "2", "3"]] * 2  # 3 is ls's own
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


def test_signals_do_to_a_command_what_they_do_by_default(bench: peers.Bench) -> None:
    command = "exec cat /proc/self/status"
    loader, port = bench.listening("load", "-o", "--exec", command, stdout=subprocess.PIPE)
    peers.send_in_thread(port, b"").join()
    assert loader.process.stdout is not None
    masks = dict(line.split() for line in loader.process.stdout.read().decode().splitlines() if line.startswith("Sig"))
    assert int(masks["SigBlk:"], 16) == int(masks["SigCgt:"], 16) == 0
    assert not int(masks["SigIgn:"], 16) & (1 << (signal.SIGPIPE - 1))
    assert loader.wait() == 0


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
@pytest.mark.parametrize("most", [1, 2])
def test_a_command_that_fails_early_resets_its_connection_only(
    bench: peers.Bench, tmp_path: Path, command: str, code: int, most: int
) -> None:
    stats = tmp_path / "stats"
    line = f'[ "$RINGMAIN_NUMBER" = 2 ] && exec cat > {tmp_path}/got; {command}'
    loader, port = bench.listening("load", "--max-connections", most, "--exec", line, "--stats-file", stats)
    assert peers.is_reset(port)
    with peers.connect(port) as sock:
        sock.sendall(b"served")
    peers.eventually(lambda: len(peers.rows_in(stats)) == 2, "the rows")
    assert (tmp_path / "got").read_bytes() == b"served"
    assert [(row["exec_exit"], row["verdict"]) for row in peers.rows_in(stats)] == [(code, "stopped"), (0, "ended")]
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert loader.stderr.count(f"the command: it ended with {code} before the stream did") == 1
    assert loader.stderr.count("ringmain:") == 1


def test_a_command_that_stops_reading_is_waited_for(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    line = f"exec 0<&-; until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 3"
    loader, port = bench.listening("load", "--exec", line, "--stats-file", stats)
    with peers.connect(port) as sock:
        fill(sock)
        assert peers.rows_in(stats) == []
        (tmp_path / "go").touch()
        peers.eventually(lambda: len(peers.rows_in(stats)) == 1, "the row")
    assert (peers.rows_in(stats)[0]["exec_exit"], peers.rows_in(stats)[0]["verdict"]) == (3, "stopped")
    loader.says("the command: it ended with 3 before the stream did")


def test_a_command_that_fails_in_the_end_is_warned_of(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "--exec", "cat > /dev/null; exit 4", "--stats-file", stats)
    with peers.connect(port) as sock:
        sock.sendall(b"all of it")
    peers.eventually(lambda: len(peers.rows_in(stats)) == 1, "the row")
    assert (peers.rows_in(stats)[0]["exec_exit"], peers.rows_in(stats)[0]["verdict"]) == (4, "ended")
    loader.says("the command: it ended with 4")
    assert loader.stderr.count("the command: it ended with 4") == 1
    assert "before the stream did" not in loader.stderr


def test_a_command_that_needs_no_more_ends_its_connection_without_a_word(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "--exec", "head -n 1", "--stats-file", stats, stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    for line in (b"first\n", b"second\n"):
        with peers.connect(port) as sock:
            sock.sendall(line)
            assert loader.process.stdout.readline() == line
            assert not peers.ends_in_reset(sock)  # all that came was read
    peers.eventually(lambda: len(peers.rows_in(stats)) == 2, "the rows")
    assert [(row["exec_exit"], row["verdict"]) for row in peers.rows_in(stats)] == [(0, "stopped")] * 2
    assert loader.stderr == f"listening on tcp://127.0.0.1:{port}\n"


@pytest.mark.parametrize(("command", "code"), [("cat > got", 0), ("cat > got; exit 9", 23)])
def test_the_only_command_s_failure_is_that_of_the_run(
    bench: peers.Bench, tmp_path: Path, command: str, code: int
) -> None:
    loader, port = bench.listening("load", "-o", "--exec", command, cwd=tmp_path)
    peers.send_in_thread(port, b"all").join()
    assert loader.wait() == code
    assert (tmp_path / "got").read_bytes() == b"all"
    assert ("the command: it ended with 9" in loader.stderr) == (code != 0)


def test_a_reset_is_told_although_its_command_is_content(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening("load", "--exec", f"cat > {tmp_path}/got", "--stats-file", stats)
    sock = peers.connect(port)
    sock.sendall(b"a part")
    peers.eventually(lambda: (tmp_path / "got").exists() and (tmp_path / "got").read_bytes() == b"a part")
    peers.close_with_reset(sock)
    peers.eventually(lambda: len(peers.rows_in(stats)) == 1, "the row")
    assert (peers.rows_in(stats)[0]["exec_exit"], peers.rows_in(stats)[0]["verdict"]) == (0, "reset")
    loader.says("connection reset by peer after 6 bytes")  # a moment after the row


def test_a_command_that_never_reads_holds_nobody_else_up(bench: peers.Bench, tmp_path: Path) -> None:
    line = f'[ "$RINGMAIN_NUMBER" = 1 ] && exec sleep 1000; exec cat > {tmp_path}/got'
    loader, port = bench.listening("load", "--max-connections", 2, "--exec", line)
    data = peers.payload(3_000_000)
    with peers.connect(port) as stuck:
        fill(stuck)
        with peers.connect(port) as other:
            other.sendall(data)
        peers.eventually(lambda: (tmp_path / "got").exists() and (tmp_path / "got").stat().st_size == len(data))
        assert peers.sha256(tmp_path / "got") == peers.sha256(data)
        running = children(loader)
        assert len([pid for pid in running if is_alive(pid)]) >= 1
        loader.signal(signal.SIGTERM)
        assert loader.wait() == 143
    assert "the command has not ended, and is stopped" in loader.stderr
    peers.eventually(lambda: not any(is_alive(pid) for pid in running), "the end of the command")


def test_a_signal_lets_commands_have_what_was_acknowledged(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    line = f"cat > {tmp_path}/$RINGMAIN_NUMBER; echo whole >> {tmp_path}/$RINGMAIN_NUMBER"
    loader, port = bench.listening("load", "--max-connections", 3, "--exec", line, "--stats-file", stats)
    socks = [peers.connect(port) for _ in range(3)]
    try:
        for sock in socks:
            sock.sendall(b"acknowledged\n")
        peers.eventually(lambda: all((tmp_path / name).exists() for name in "123"), "the commands")
        loader.signal(signal.SIGTERM)
        assert loader.wait() == 143
    finally:
        for sock in socks:
            sock.close()
    assert [(tmp_path / name).read_bytes() for name in "123"] == [b"acknowledged\nwhole\n"] * 3
    assert [row["exec_exit"] for row in peers.rows_in(stats)] == [0] * 3
    assert "has not ended" not in loader.stderr


def test_a_command_that_goes_on_after_the_end_is_ended_with_all_it_started(bench: peers.Bench, tmp_path: Path) -> None:
    stats, pids = tmp_path / "stats", tmp_path / "pids"
    line = f"trap '' TERM; sh -c 'echo $$ > {pids}; exec sleep 1000' | sleep 1000"
    loader, port = bench.listening("load", "--exec", line, "--stats-file", stats)
    with peers.connect(port) as sock:
        sock.sendall(b"x")
        peers.eventually(lambda: pids.exists() and pids.read_text().endswith("\n"), "the command")
        loader.signal(signal.SIGTERM)
        assert loader.wait() == 143
    assert peers.rows_in(stats)[0]["exec_exit"] == 137
    peers.eventually(lambda: not is_alive(int(pids.read_text())), "the end of what the command started")


def test_what_a_command_started_is_ended_although_it_ends_itself_at_once(bench: peers.Bench, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    line = f"sh -c 'trap \"\" TERM; echo $$ > {pids}; exec sleep 1000'; true"
    loader, port = bench.listening("load", "--exec", line)
    with peers.connect(port) as sock:
        sock.sendall(b"x")
        peers.eventually(lambda: pids.exists() and pids.read_text().endswith("\n"), "the command")
        loader.signal(signal.SIGTERM)
        assert loader.wait() == 143
    pid = int(pids.read_text())
    try:
        peers.eventually(lambda: not is_alive(pid), "the end of what the command started")
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_no_more_commands_run_than_connections_may_be(bench: peers.Bench, tmp_path: Path) -> None:
    line = f"cat > /dev/null; echo $$ > {tmp_path}/pid-$RINGMAIN_NUMBER; exec sleep 1000"
    loader, port = bench.listening("load", "--max-connections", 2, "--gate", "queue", "--exec", line)

    def pids() -> list[str]:
        return [text for it in sorted(tmp_path.glob("pid-*")) if (text := it.read_text()).endswith("\n")]

    for _ in range(3):  # their streams are over at once, their commands are not
        peers.send_in_thread(port, b"x").join()
    two = peers.eventually(lambda: len(pids()) == 2 and pids(), "two commands")
    assert sorted(children(loader)) == sorted(map(int, two))
    os.kill(int(two[0]), signal.SIGTERM)
    peers.eventually(lambda: len(pids()) == 3, "the third command")
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143
    assert "the command: it ended with 143" in loader.stderr


def test_exit_codes_are_told_where_our_parent_ignored_its_children(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    options = ["-o", "--exec", "cat > /dev/null; exit 5", "--stats-file", stats]
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        loader, port = bench.listening("load", *options)
    finally:
        signal.signal(signal.SIGCHLD, before)
    peers.send_in_thread(port, b"x").join()
    assert loader.wait() == 23
    assert peers.rows_in(stats)[0]["exec_exit"] == 5


def test_a_connection_without_descriptors_for_it_costs_itself_only(bench: peers.Bench, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    loader, port = bench.listening(
        "load", "--max-connections", 2, "--exec", "cat > got", "--stats-file", stats, cwd=tmp_path
    )
    limits = resource.prlimit(loader.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(loader.process.pid, resource.RLIMIT_NOFILE, (loader.fd_count() + 2, limits[1]))
    assert peers.is_reset(port)
    resource.prlimit(loader.process.pid, resource.RLIMIT_NOFILE, limits)
    with peers.connect(port) as sock:
        sock.sendall(b"served")
    peers.eventually(lambda: len(peers.rows_in(stats)) == 2, "the rows")
    assert (tmp_path / "got").read_bytes() == b"served"
    loader.says("start the command: too many open files; see ulimit -n")
    assert [row.get("exec_exit") for row in peers.rows_in(stats)] == [None, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--exec", "cat", "-O", "file"], "--exec with --output: the command gets the bytes; leave one of them out"),
        (["--exec", "cat", "--path", "kernel", "--framing", "nul"], "records are checked and cut in blocks"),
    ],
)
def test_what_makes_no_sense_is_refused(bench: peers.Bench, options: list[str], said: str) -> None:
    loader = bench.ringmain("load", *options, "127.0.0.1:0")
    assert loader.wait() == 2
    assert said in loader.stderr


def test_a_connection_that_is_dialled_may_be_given_to_a_command(bench: peers.Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = 'cat; echo "$RINGMAIN_PEER,$RINGMAIN_NUMBER,$RINGMAIN_LISTENER"'
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        around = {**os.environ, "RINGMAIN_LISTENER": "of whoever has started us"}
        loader = bench.ringmain("load", "-c", where, "--exec", command, stdout=subprocess.PIPE, env=around)
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"dialled\n")
        assert loader.process.stdout is not None
        assert loader.process.stdout.read().decode() == f"dialled\n{where},1,\n"
        assert loader.wait() == 0
