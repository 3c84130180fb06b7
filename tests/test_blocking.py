"""The plain `with` and `for`, outside of an event loop, and inside of one that runs, as in a notebook."""

import asyncio
import gc
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import streams
import uvloop
from conftest import FORGOTTEN, open_descriptors

import ringmain
from ringmain import errors

LOOPS = {"no loop": None, "uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS.values(), ids=LOOPS.keys())
def call(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Call a function, as it is or from a coroutine; afterwards no thread is left."""
    before = set(threading.enumerate())

    def within(function: Callable[..., Any], *arguments: Any) -> Any:
        async def main() -> Any:
            return function(*arguments)

        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main())

    yield within if request.param is not None else lambda function, *arguments: function(*arguments)
    peers.eventually(lambda: set(threading.enumerate()) <= before, "the end of the threads")


def test_a_plain_for_gets_every_byte(call: Callable[..., Any]) -> None:
    data = peers.payload(20_000_000)

    def load() -> bytes:
        got = bytearray()
        with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
            thread = peers.send_in_thread(loader.port, data)
            for block in loader:
                got += block
        thread.join()
        return bytes(got)

    assert peers.sha256(call(load)) == peers.sha256(data)


def test_a_plain_for_tells_connections_apart(call: Callable[..., Any]) -> None:
    parts = [b"a\nb", b"", b"c\nd\n"]

    def load() -> list[bytes]:
        with ringmain.load("127.0.0.1:0", delimiter=b"\n") as loader:
            thread = peers.send_in_thread(loader.port, *parts)
            seen = []
            for stream in loader.connections():
                seen.append(b"".join(bytes(block) for block in stream))
                if len(seen) == len(parts):
                    break
        thread.join()
        return seen

    assert call(load) == parts


def test_a_plain_save_gives_bytes_to_the_kernel_before_it_returns(call: Callable[..., Any]) -> None:
    def save(listener: socket.socket) -> None:
        with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
            sock, _ = listener.accept()
            saver.write(b"small")
            assert sock.recv(100) == b"small"
            saver.write(memoryview(b"abcd").cast("H"))
        assert peers.read_all(sock) == b"abcd"
        sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        call(save, listener)


def test_a_plain_relay_and_plain_files_reach_each_other(call: Callable[..., Any]) -> None:
    data = peers.payload(3_000_000)

    def exchange() -> bytes:
        with (
            streams.echo() as port,
            ringmain.relay("127.0.0.1:0", f"127.0.0.1:{port}", listen_once=True) as relayer,
        ):
            thread = threading.Thread(target=relayer.serve)  # in a thread without a loop: it serves this one
            thread.start()
            with peers.connect(relayer.port) as sock:
                got = streams.exchange(sock, data)
            thread.join()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with ringmain.open(f"127.0.0.1:{listener.getsockname()[1]}", "wb") as writer:
                sock, _ = listener.accept()
                writer.write(b"to a file")
            assert peers.read_all(sock) == b"to a file"
            sock.close()
        return got

    assert peers.sha256(call(exchange)) == peers.sha256(data)


def test_plain_forms_may_be_nested_and_passed_on(call: Callable[..., Any]) -> None:
    def nest() -> None:
        loader = ringmain.load("127.0.0.1:0", listen_once=True).__enter__()
        with ringmain.save(f"127.0.0.1:{loader.port}") as saver:
            saver.write(b"first")
            assert bytes(next(loader)) == b"first"
            saver.write(b"second")
            assert bytes(next(loader)) == b"second"
        assert list(loader) == []
        loader.__exit__(None, None, None)

    call(nest)


def test_what_was_opened_outside_of_a_loop_may_be_used_inside_of_one(call: Callable[..., Any]) -> None:
    with ringmain.load("127.0.0.1:0") as loader, peers.connect(loader.port) as sock:
        sock.sendall(b"x")
        assert bytes(call(next, loader)) == b"x"
        sock.sendall(b"y")
        assert bytes(next(loader)) == b"y"


def test_blocks_may_be_given_back_by_another_thread_while_one_waits(call: Callable[..., Any]) -> None:
    data = peers.payload(3_000_000)

    def load() -> bytes:
        got = bytearray()
        with ringmain.load("127.0.0.1:0", listen_once=True, block_size=16 << 10, ring_size=64 << 10) as loader:
            thread = peers.send_in_thread(loader.port, data)
            held: list[memoryview] = []
            givers: list[threading.Thread] = []
            over = threading.Event()

            def give_back(blocks: list[memoryview]) -> None:
                peers.eventually(lambda: loader.ring.starved or over.is_set(), "a wait")
                for block in blocks:
                    block.release()

            for block in loader:
                got += block
                held.append(block)
                if len(held) == loader.ring.block_count:  # the next `next` waits for the other thread
                    givers.append(threading.Thread(target=give_back, args=[held]))
                    givers[-1].start()
                    held = []
            over.set()
            for giver in givers:
                giver.join()
        assert givers
        thread.join()
        return bytes(got)

    assert peers.sha256(call(load)) == peers.sha256(data)


def test_an_error_comes_out_of_the_plain_form_and_closes_everything(call: Callable[..., Any]) -> None:
    def fail() -> int:
        with pytest.raises(errors.ConnectError), ringmain.load(f"127.0.0.1:{peers.free_port()}", connect=True):
            pass
        with pytest.raises(KeyError), ringmain.load("127.0.0.1:0") as loader:
            port = loader.port
            raise KeyError
        return port

    port = call(fail)
    with pytest.raises(ConnectionRefusedError):
        peers.connect(port)


def is_closed(port: int) -> bool:
    try:
        peers.connect(port).close()
    except ConnectionRefusedError:
        return True
    return False


@FORGOTTEN
def test_a_forgotten_plain_loader_closes_what_it_opened(call: Callable[..., Any]) -> None:
    def forget() -> None:
        before = open_descriptors()
        loader = ringmain.load("127.0.0.1:0").__enter__()
        port = loader.port
        with peers.connect(port) as sock:
            sock.sendall(b"x")
            next(loader)
            del loader
            gc.collect()
            peers.eventually(lambda: is_closed(port), "the end of the listener")
        peers.eventually(lambda: len(open_descriptors()) <= len(before), "the end of the loop")

    call(forget)


LOAD = """
    with ringmain.load("127.0.0.1:0") as loader:
        print(loader.port, flush=True)
        for block in loader:
            print(bytes(block), flush=True)
"""
PROGRAMS = {
    "no loop": f"import ringmain\nif True:{LOAD}",
    "a loop": f"""import asyncio, contextlib, ringmain
async def main():{LOAD}
with contextlib.closing(asyncio.new_event_loop()) as loop:
    loop.run_until_complete(main())
""",
}


@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_an_interrupt_ends_a_plain_for_that_waits(code: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        with peers.connect(int(program.stdout.readline())) as sock:
            sock.sendall(b"x")
            assert program.stdout.readline() == "b'x'\n"
            stat = Path(f"/proc/{program.pid}/stat")
            peers.eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "a loader that waits")
            program.send_signal(signal.SIGINT)
            _, stderr = program.communicate(timeout=peers.TIMEOUT)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert "never" not in stderr


@pytest.mark.parametrize(
    ("iterated", "many"),
    [
        ("blocks", 1),
        ("blocks", 2),
        ("records", 1),
        ("records", 2),
        ("connections", 1),
        ("connections", 2),
        ("tagged", 2),
    ],
)
def test_an_async_for_over_a_plain_with_is_refused_in_our_words(iterated: str, many: int) -> None:
    async def main() -> None:
        with ringmain.load("127.0.0.1:0", delimiter=b"\n", max_connections=many) as loader:
            async for _ in loader if iterated == "blocks" else getattr(loader, iterated)():
                raise AssertionError

    with pytest.raises(errors.UsageError, match="a loader: it was opened by a plain `with`"):
        asyncio.run(main())
