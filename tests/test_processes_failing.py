"""Load in several processes: what is refused, what cannot begin, and what a dead process leaves."""

import asyncio
import contextlib
import errno
import functools
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
from crews import Crew, all_ended

import ringmain
from ringmain import errors
from ringmain.flow.descriptor import Output, open_output
from ringmain.flow.resuming import Mark, ResumableOutput
from ringmain.net.channel import Channel

Run = Callable[[Any], Any]


def refused(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [*peers.RINGMAIN, "load", *map(str, arguments), "tcp://127.0.0.1:0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=peers.TIMEOUT, check=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-connections", 2, "--processes", 2], "--output a FILE with {process} in its name"),
        (["--max-connections", 9, "--processes", 2, "--output", "x"], "--output a FILE with {process} in its name"),
        (["--max-connections", 2, "--processes", 3, "--output", "x{process}"], "give --max-connections 3 or more"),
        (["--processes", 2, "--output", "x{process}"], "give --max-connections 2 or more"),
        (["--max-connections", 2, "--processes", 2, "--output", "x{process}", "--self-signed"], "give --certfile"),
        (["--max-connections", 2, "--processes", 2, "--output", "x{process}", "-o"], "there is only one connection"),
        (["--max-connections", 2, "--processes", 2, "--exec", "cat"], "the commands use the other cores already"),
        (
            ["--max-connections", 2, "--processes", 2, "--output", "x{process}-{number}"],
            "use {process} only in its name",
        ),
        (
            ["--max-connections", 2, "--processes", 2, "--output", "x{process}", "--stats-file", "s"]
            + ["--stats-interval", "1s"],
            "totals of several processes are not added up",
        ),
        (["--processes", 129, "--output", "x{process}"], "1<=x<=128"),
        (["--processes", 0], "1<=x<=128"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_with_a_remedy(options: list[Any], words: str) -> None:
    done = refused(*options)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_where_one_output_cannot_be_opened_no_other_is_touched(tmp_path: Path) -> None:
    (tmp_path / "out-1").write_bytes(b"from before\n")
    (tmp_path / "out-3").mkdir()
    done = refused("--max-connections", 3, "--processes", 3, "--output", tmp_path / "out-{process}")
    assert done.returncode == 23
    assert done.stderr == f"ringmain: open {tmp_path}/out-3: is a directory; choose another --output\n"
    assert (tmp_path / "out-1").read_bytes() == b"from before\n"
    assert not (tmp_path / "out-2").exists()


def test_where_the_port_cannot_be_told_no_output_is_touched(tmp_path: Path) -> None:
    options = ["--max-connections", 2, "--processes", 2, "--output", tmp_path / "out-{process}"]
    done = refused(*options, "--port-file", tmp_path / "none" / "port")
    assert done.returncode == 23
    assert list(tmp_path.iterdir()) == []


def test_a_process_inherits_standard_descriptors_and_its_channel_only(bench: peers.Bench) -> None:
    here, there = os.pipe()
    try:
        crew = Crew(bench, pass_fds=[there])
        names = [it.readlink() for pid in crew.workers() for it in Path(f"/proc/{pid}/fd").iterdir()]
        assert Path(f"/proc/{crew.program.process.pid}/fd/{there}").exists()
        assert Path(f"/proc/self/fd/{there}").readlink() not in names
    finally:
        os.close(here)
        os.close(there)


def test_a_process_without_descriptors_left_loses_a_client_and_goes_on(bench: peers.Bench) -> None:
    crew = Crew(bench)
    with contextlib.ExitStack() as stack:
        first = crew.greet(stack, "first")
        crew.greet(stack, "second")
        worker = crew.worker_of(crew.files[0])
        assert worker is not None
        numbers = {int(it.name) for it in Path(f"/proc/{worker}/fd").iterdir()}
        limit = next(number for number in range(max(numbers) + 2) if number not in numbers)
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, hard))
        assert peers.is_reset(crew.port)
        crew.program.says("cannot be served: too many open files")
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        first.sendall(b"still here\n")
        peers.eventually(lambda: b"still here\n" in crew.lines(crew.files[0]), "another line")
        crew.greet(stack, "third")
        assert len(crew.lines(crew.files[0])) == 3


def test_with_one_process_the_name_has_its_number_too(bench: peers.Bench) -> None:
    crew = Crew(bench, processes=1)
    with peers.connect(crew.port) as sock:
        sock.sendall(b"hello\n")
    peers.eventually(lambda: crew.lines() == [b"hello\n"], "the line")


def test_processes_that_die_before_they_serve_anybody_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'ringmain.cli.worker' in sys.orig_argv:\n    os._exit(3)\n"
    )
    command = [
        *peers.RINGMAIN,
        "load",
        "--max-connections",
        "9",
        "--processes",
        "2",
        "--output",
        f"{tmp_path}/{{process}}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "tcp://127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=peers.TIMEOUT,
        env=environment,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("has ended with code 3; lost with it: 0 connections") == 2
    assert "2 processes in a row have died before they served anybody" in done.stderr.splitlines()[-1]


def test_a_dead_process_that_wrote_to_a_pipe_ends_the_run_since_a_record_may_be_cut_there(
    bench: peers.Bench, tmp_path: Path
) -> None:
    readers = []
    for number in (1, 2):
        os.mkfifo(tmp_path / f"out-{number}")
        readers.append(os.open(tmp_path / f"out-{number}", os.O_RDONLY | os.O_NONBLOCK))
    try:
        crew = Crew(bench)
        workers = crew.workers()
        os.kill(workers[0], signal.SIGKILL)
        assert crew.program.wait() == 23
        assert "what is no file cannot be mended" in crew.program.stderr
        all_ended(workers)
    finally:
        for fd in readers:
            os.close(fd)


@pytest.mark.parametrize(
    ("options", "whole", "part"),
    [
        ({"delimiter": b"\r\n"}, b"one\r\ntwo\r\n", b"three\r"),
        ({"framing": "length:2be"}, b"\0\3one\0\3two", b"\0\5thr"),
        ({"framing": "octet-counting"}, b"3 one3 two", b"5 thr"),
    ],
    ids=["delimiter", "length", "octet-counting"],
)
@pytest.mark.parametrize("noted", [0, 5, None], ids=["nothing noted", "one noted", "all noted"])
def test_where_a_process_has_died_in_a_write_whole_records_stay_and_a_part_is_dropped(
    run: Run, tmp_path: Path, options: dict[str, Any], whole: bytes, part: bytes, noted: int | None
) -> None:
    path = tmp_path / "out"
    path.write_bytes(whole + part)
    walk = ringmain.load("127.0.0.1:0", max_connections=2, **options).records(headers=True)
    fd = os.memfd_create("mark")
    os.write(fd, Mark.UNSET)
    mark = Mark(fd)
    os.close(fd)
    status = path.stat()
    mark.note(len(whole) if noted is None else noted, (status.st_dev, status.st_ino))
    output = open_output(str(path), kind=functools.partial(ResumableOutput, mark=mark, walk=walk))
    output.begin()
    run(_write(output, whole))
    assert mark.size == 2 * len(whole)
    output.close()
    assert path.read_bytes() == whole + whole


def test_a_file_that_fails_when_it_is_closed_for_another_is_noted_as_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the process that takes this one's place would not look for a record that is cut short."""
    path, walk = tmp_path / "out", ringmain.load("127.0.0.1:0", max_connections=2).records(headers=True)
    fd = os.memfd_create("mark")
    os.write(fd, Mark.UNSET)
    mark = Mark(fd)
    os.close(fd)
    kind = functools.partial(ResumableOutput, mark=mark, walk=walk)
    output = open_output(str(path), kind=kind)
    output.begin()
    run(_write(output, b"one\n"))
    path.rename(tmp_path / "old")
    old = (tmp_path / "old").stat()
    close = os.close

    def fails(number: int) -> None:
        is_old = os.path.samestat(os.fstat(number), old)
        close(number)
        if is_old:
            raise OSError(errno.EDQUOT, "")

    monkeypatch.setattr(os, "close", fails)
    with pytest.raises(errors.OutputError, match="disk quota exceeded"):
        output.reopen(str(path))
    monkeypatch.setattr(os, "close", close)
    assert mark.file == output.identity != (old.st_dev, old.st_ino)
    run(_write(output, b"two\n"))
    assert (mark.size, mark.file) == (4, output.identity)
    with path.open("ab") as file:
        file.write(b"thr")  # as of a process that died meanwhile
    output.close()
    again = open_output(str(path), kind=kind)
    again.begin()
    run(_write(again, b"four\n"))
    again.close()
    assert path.read_bytes() == b"two\nfour\n"


def test_where_a_new_file_cannot_be_opened_who_takes_the_place_goes_on_in_the_old_one(bench: peers.Bench) -> None:
    crew = Crew(bench, "--output", bench.folder / "{process}-%s", start_new_session=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(peers.connect(crew.port)).sendall(b"before\n")
        [old] = peers.eventually(lambda: [it for it in bench.folder.glob("1-*") if it.stat().st_size], "the line")
        now = int(old.name.partition("-")[2])
        for later in range(now + 1, now + 600):
            (bench.folder / f"1-{later}").mkdir()
        time.sleep(1.1)  # until the name is another one
        crew.program.signal(signal.SIGHUP)
        crew.program.says("is a directory; it goes on in the file that was")
        worker = crew.worker_of(old)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        peers.eventually(lambda: crew.worker_of(old) not in (None, worker), "another one")

        def lands() -> bool:  # until it serves, the other process has all
            with peers.connect(crew.port) as sock:
                sock.sendall(b"after\n")
            return old.read_bytes().startswith(b"before\nafter\n")

        peers.eventually(lands, "the next line")
    crew.program.signal(signal.SIGTERM)
    assert crew.program.wait() == 143


async def _write(output: Output, data: bytes) -> None:
    await output.write(memoryview(data), ringmain.Counters())


def test_a_torn_message_is_warned_of_and_the_next_is_heard(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[Any]:
        heard: list[Any] = []
        over = asyncio.Event()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = Channel(ours, lambda message, _: heard.append(message), over.set)
        with theirs:
            for data in (b'{"row": ', b"[1]", b"\xff", b'{"a": 1}'):
                theirs.send(data)
        await over.wait()
        channel.close()
        return heard

    assert run(main()) == [{"a": 1}]
    assert caplog.text.count("a message of another process is torn") == 3


def test_what_the_other_side_has_no_room_for_comes_later_and_in_order(run: Run) -> None:
    async def main() -> list[int]:
        numbers: list[int] = []
        over = asyncio.Event()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender = Channel(here, lambda _message, _sock: None, lambda: None)
        for number in range(3000):
            sender.send({"number": number}, socket.socket() if number % 100 == 0 else None)
        sender.shut()
        assert sender.is_behind

        def hear(message: dict[str, Any], sock: socket.socket | None) -> None:
            numbers.append(message["number"])
            if message["number"] % 100 == 0:
                assert sock is not None
                sock.close()

        receiver = Channel(there, hear, over.set)
        await over.wait()
        sender.close()
        receiver.close()
        return numbers

    assert run(main()) == list(range(3000))


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_client_that_nobody_takes_out_of_a_channel_is_reset(run: Run, is_taken: bool) -> None:
    async def main() -> bool:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with socket.create_server(("127.0.0.1", 0)) as listener, peers.connect(listener.getsockname()[1]) as client:
            sender = Channel(here, lambda _message, _sock: None, lambda: None)
            sender.send({}, listener.accept()[0])
            if is_taken:
                taken = asyncio.get_running_loop().create_future()
                receiver = Channel(there, lambda _message, sock: taken.set_result(sock), lambda: None)
                (await taken).close()
                receiver.close()
            there.close()  # as where its process is killed; or has no descriptor for what comes
            sender.close()
            return await asyncio.to_thread(peers.ends_in_reset, client)

    assert run(main()) is not is_taken


def test_sockets_that_may_not_go_yet_are_tried_again_now_and_then_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def refuse(*_: object) -> None:
        tries.append(1)
        raise OSError(errno.ETOOMANYREFS, "")

    async def main() -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender = Channel(here, lambda _message, _sock: None, lambda: None)
        while not sender.is_behind:
            sender.send({})
        sender.send({}, socket.socket())
        receiver = Channel(there, lambda _message, _sock: None, lambda: None)
        while not tries:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(100):  # turns of the loop
            await asyncio.sleep(0)
        sender.close()
        receiver.close()

    monkeypatch.setattr("ringmain.net.channel._BACK_OFF", 3600)
    monkeypatch.setattr(socket, "send_fds", refuse)
    run(main())
    assert len(tries) == 1


def test_listeners_that_ask_for_it_share_a_port(run: Run) -> None:
    async def main() -> list[bytes]:
        async with ringmain.load("127.0.0.1:0", reuse_port=True) as one:
            with pytest.raises(errors.BindError):
                async with ringmain.load(f"127.0.0.1:{one.port}"):
                    pass
            async with ringmain.load(f"127.0.0.1:{one.port}", reuse_port=True) as other:
                takers = [asyncio.ensure_future(anext(it)) for it in (one, other)]
                while not all(it.done() for it in takers):
                    with peers.connect(one.port) as sock:
                        sock.sendall(b"hello")
                    await asyncio.sleep(0)
                return [bytes(it.result()) for it in takers]

    assert run(main()) == [b"hello", b"hello"]


def test_two_commands_share_a_port(bench: peers.Bench, tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    _, port = bench.listening("load", "--reuse-port", "--max-connections", 9, "--output", paths[0])
    other = bench.ringmain(
        "load", "--reuse-port", "--max-connections", 9, "--output", paths[1], "-v", f"tcp://127.0.0.1:{port}"
    )
    other.says("listening on")

    def both_got_something() -> bool:
        with peers.connect(port) as sock:
            sock.sendall(b"hello\n")
        return all(path.exists() and path.read_bytes() for path in paths)

    peers.eventually(both_got_something, "a line in both files")
