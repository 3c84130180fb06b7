"""No path and no linger changes a byte, in whatever pattern they come."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from conftest import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ringmain
from ringmain._pump import HAS_SPLICE
from ringmain.flow import copying
from ringmain.flow.descriptor import Input, Output

PATHS = ["auto", "kernel", "block"] if HAS_SPLICE else ["auto", "block"]

# What is sent: how much, how often at once, and then how long a pause. Sizes around those of pages, marks and pipes.
sizes = st.one_of(
    st.integers(1, 200), st.sampled_from([4095, 4096, 8193, 65_537, 200_000, 600_000]), st.integers(1, 300_000)
)
writes = st.lists(
    st.tuples(sizes, st.sampled_from([1, 1, 1, 2, 20]), st.sampled_from([0.0, 0.0, 0.0, 0.0005, 0.002])), max_size=10
)
hypothesis_settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


ALPHABET = peers.payload(700_000)


def parts_of(pattern: list[tuple[int, int, float]]) -> list[tuple[bytes, float]]:
    """Turn sizes into bytes that differ from one part to the next; they have newlines, by chance."""
    pauses = [(size, pause) for size, count, last in pattern for pause in [0.0] * (count - 1) + [last]]
    return [(ALPHABET[number % 12 * 7919 :][:size], pause) for number, (size, pause) in enumerate(pauses)]


def send_parts(send: Callable[[bytes], Any], close: Callable[[], Any], parts: list[tuple[bytes, float]]) -> None:
    for data, pause in parts:
        send(data)
        if pause:
            time.sleep(pause)
    close()


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


async def load_by(path: str, linger: float, parts: list[tuple[bytes, float]], kind: str, folder: Path) -> bytes:
    """Load what a peer sends in these parts to a pipe or file; return what came out."""
    async with ringmain.load("127.0.0.1:0", listen_once=True, linger=linger) as loader:
        loop = asyncio.get_running_loop()
        sock = socket.create_connection(("127.0.0.1", loader.port))
        sending = loop.run_in_executor(None, send_parts, sock.sendall, sock.close, parts)
        if kind == "pipe":
            source, sink = os.pipe()
            reading = loop.run_in_executor(None, read_all, source)
        else:
            source = sink = os.open(folder / "got", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        output = Output(sink, "the output")
        await copying.to_output(loader, output, path)
        output.close()
        await sending
        os.close(sink)
        if kind == "pipe":
            got = await reading
            os.close(source)
            return got
        return (folder / "got").read_bytes()


async def save_by(path: str, parts: list[tuple[bytes, float]], kind: str, folder: Path) -> bytes:
    """Save what is written to a pipe in these parts, or a file of them; return what a peer got."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
            sock, _ = listener.accept()
            with sock:
                reading = loop.run_in_executor(None, peers.read_all, sock)
                if kind == "pipe":
                    source_fd, sink = os.pipe()
                    close, send = (lambda: os.close(sink)), (lambda data: write_all(sink, data))
                    sending = loop.run_in_executor(None, send_parts, send, close, parts)
                else:
                    (folder / "input").write_bytes(b"".join(data for data, _ in parts))
                    source_fd = os.open(folder / "input", os.O_RDONLY)
                source = Input(source_fd, "the input")
                await copying.from_input(saver, source, path)
                source.close()
                os.close(source_fd)
                if kind == "pipe":
                    await sending
                    if saver.counters is not None:
                        await saver.end_connection()
                return await reading


@settings(hypothesis_settings, max_examples=40)
@given(pattern=writes, kind=st.sampled_from(["pipe", "file"]))
def test_no_path_and_no_linger_changes_a_byte_that_is_loaded(
    run: Run, tmp_path: Path, pattern: list[tuple[int, int, float]], kind: str
) -> None:
    parts = parts_of(pattern)
    sent = b"".join(data for data, _ in parts)

    async def main() -> None:
        for path in PATHS:
            for linger in (0.0, 0.001, 0.005):
                got = await load_by(path, linger, parts, kind, tmp_path)
                assert (path, linger, peers.sha256(got)) == (path, linger, peers.sha256(sent))

    run(main())


@settings(hypothesis_settings, max_examples=30)
@given(pattern=writes, kind=st.sampled_from(["pipe", "file"]))
def test_no_path_changes_a_byte_that_is_saved(
    run: Run, tmp_path: Path, pattern: list[tuple[int, int, float]], kind: str
) -> None:
    parts = parts_of(pattern)
    sent = b"".join(data for data, _ in parts)

    async def main() -> None:
        for path in PATHS:
            got = await save_by(path, parts, kind, tmp_path)
            assert (path, peers.sha256(got)) == (path, peers.sha256(sent))

    run(main())


@settings(hypothesis_settings, max_examples=60)
@given(pattern=writes, delimiter=st.sampled_from([b"", b"\n", b"\x00\x01"]))
def test_no_linger_changes_a_byte_or_a_cut_of_the_blocks(
    run: Run, pattern: list[tuple[int, int, float]], delimiter: bytes
) -> None:
    parts = parts_of(pattern)
    sent = b"".join(data for data, _ in parts)

    async def main() -> None:
        for linger in (0.0, 0.001, 0.005):
            async with ringmain.load(
                "127.0.0.1:0", listen_once=True, linger=linger, delimiter=delimiter, block_size=8192, ring_size=65_536
            ) as loader:
                sock = socket.create_connection(("127.0.0.1", loader.port))
                loop = asyncio.get_running_loop()
                sending = loop.run_in_executor(None, send_parts, sock.sendall, sock.close, parts)
                blocks = [bytes(block) async for block in loader]
                await sending
            assert (linger, peers.sha256(b"".join(blocks))) == (linger, peers.sha256(sent))
            assert all(block.endswith(delimiter) for block in blocks[:-1])

    run(main())
