"""The plain `with` and `for`, outside of an event loop."""

import gc
import signal
import socket
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from conftest import Certificates

import ringmain
from ringmain import errors


def test_a_plain_for_gets_every_byte() -> None:
    data = peers.payload(20_000_000)
    got = bytearray()
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        thread = peers.send_in_thread(loader.port, data)
        for block in loader:
            got += block
    thread.join()
    assert peers.sha256(bytes(got)) == peers.sha256(data)


def test_a_plain_for_tells_connections_apart() -> None:
    parts = [b"a\nb", b"", b"c\nd\n"]
    with ringmain.load("127.0.0.1:0", delimiter=b"\n") as loader:
        thread = peers.send_in_thread(loader.port, *parts)
        seen = []
        for stream in loader.connections():
            seen.append(b"".join(bytes(block) for block in stream))
            if len(seen) == len(parts):
                break
    thread.join()
    assert seen == parts


def test_a_plain_save_gives_bytes_to_the_kernel_before_it_returns(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}") as saver:
            sock, _ = listener.accept()
            saver.write(b"small")
            assert sock.recv(100) == b"small"
            saver.write(memoryview(b"abcd").cast("H"))
        assert peers.read_all(sock) == b"abcd"
        sock.close()


def test_an_error_comes_out_of_the_plain_form_and_closes_everything() -> None:
    with pytest.raises(errors.ConnectError), ringmain.load(f"127.0.0.1:{peers.free_port()}", connect=True):
        pass
    with pytest.raises(KeyError), ringmain.load("127.0.0.1:0") as loader:
        port = loader.port
        raise KeyError
    with pytest.raises(ConnectionRefusedError):
        peers.connect(port)


def test_a_forgotten_plain_loader_closes_what_it_opened() -> None:
    loader = ringmain.load("127.0.0.1:0").__enter__()
    port = loader.port
    sock = peers.connect(port)
    sock.sendall(b"x")
    next(loader)
    del loader
    gc.collect()
    with pytest.raises(ConnectionRefusedError):
        peers.connect(port)
    sock.close()


def test_an_interrupt_ends_a_plain_for_that_waits() -> None:
    code = """
import ringmain
with ringmain.load("127.0.0.1:0") as loader:
    print(loader.port, flush=True)
    for block in loader:
        print(bytes(block), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
