"""ringmain.open: a connection as a file."""

import contextlib
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from conftest import Certificates

import ringmain
from ringmain import errors

Serve = Callable[[bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Listen, and send the given bytes to the first client; return the endpoint."""
    with contextlib.ExitStack() as stack:

        def start(data: bytes) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def send() -> None:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    sock.sendall(data)

            thread = threading.Thread(target=send)
            thread.start()
            stack.callback(thread.join)
            return f"tcp://127.0.0.1:{listener.getsockname()[1]}"

        yield start


def test_a_file_reads_as_the_same_bytes_in_memory_do(serve: Serve) -> None:
    data = b"".join(b"line %d\r\n" % number for number in range(100_000)) + b"rest"
    with ringmain.open(serve(data)) as file:
        memory = io.BytesIO(data)
        assert file.read(10) == memory.read(10)
        assert file.readline() == memory.readline()
        assert bytes(file.read_buffer(3)) == memory.read(3)
        buffers = bytearray(5), bytearray(5)
        assert file.readinto(buffers[0]) == memory.readinto(buffers[1])
        assert buffers[0] == buffers[1]
        assert [next(file) for _ in range(1000)] == [next(memory) for _ in range(1000)]
        assert bytes(file.read_buffer(500_000)) == memory.read(500_000)
        assert file.read1(1) == memory.read1(1)
        assert file.read() == memory.read()
        assert file.read() == b""
        assert bytes(file.read_buffer(10)) == b""
    assert file.closed


def test_read_buffer_within_a_block_copies_nothing(serve: Serve) -> None:
    with ringmain.open(serve(b"0123456789")) as file:
        first, second = file.read_buffer(4), file.read_buffer(3)
        assert type(first.obj).__name__ == "Block"
        assert first.obj is second.obj
        assert bytes(first) + bytes(second) + bytes(file.read_buffer()) == b"0123456789"
        del first, second


def test_a_position_is_refused_clearly(serve: Serve) -> None:
    with ringmain.open(serve(b"x")) as file:
        for action in (file.tell, lambda: file.seek(0), lambda: file.truncate()):
            with pytest.raises(io.UnsupportedOperation, match="no position"):
                action()
        assert not file.seekable()
        assert file.readable()
        assert not file.writable()
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    with pytest.raises(errors.UsageError, match="mode 'r'"):
        ringmain.open("tcp://127.0.0.1:1", "r")  # type: ignore[call-overload]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_written_file_arrives_whole(certificates: Certificates, tls: bool) -> None:
    data = peers.payload(5_000_000)
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def receive() -> None:
            sock, _ = listener.accept()
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificates.server)
                sock = context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            with sock:
                got.append(peers.read_all(sock))

        thread = threading.Thread(target=receive)
        thread.start()
        url = f"{'tcps' if tls else 'tcp'}://127.0.0.1:{listener.getsockname()[1]}"
        with ringmain.open(url, "wb", cafile=str(certificates.ca) if tls else None) as file:
            assert file.writable()
            for start in range(0, len(data), 99_999):
                assert file.write(data[start : start + 99_999]) == len(data[start : start + 99_999])
            file.flush()
        thread.join()
    assert peers.sha256(got[0]) == peers.sha256(data)


def test_with_listen_a_file_waits_for_its_one_client() -> None:
    with ringmain.open("127.0.0.1:0", listen=True) as file:
        with peers.connect(file.port) as sock:
            sock.sendall(b"one\ntwo\n")
        assert file.readlines() == [b"one\n", b"two\n"]


def test_text_and_small_buffers_work_on_top(serve: Serve) -> None:
    with io.TextIOWrapper(ringmain.open(serve("grün\nblau\n".encode()), buffer_size=1)) as file:
        assert list(file) == ["grün\n", "blau\n"]


@pytest.mark.parametrize("divisor", [1, 0], ids=["whole", "left by an exception"])
def test_text_that_an_exception_cuts_short_never_looks_whole(divisor: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with contextlib.suppress(ZeroDivisionError), ringmain.open(url, "wb") as file:
            text = io.TextIOWrapper(file, write_through=True)
            text.write("grün\n" * 1000)
            assert 1 / divisor
        with listener.accept()[0] as peer:
            if divisor:
                assert peers.read_all(peer) == "grün\n".encode() * 1000
            else:
                with pytest.raises(ConnectionResetError):
                    peers.read_all(peer)


def test_a_file_whose_raw_was_detached_is_refused_as_any_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file = ringmain.open(f"127.0.0.1:{listener.getsockname()[1]}", "wb")
        with listener.accept()[0] as peer:
            file.write(b"all")
            raw = file.detach()
            for close in (file.close, lambda: file.__exit__(None, None, None)):
                with pytest.raises(ValueError, match="raw stream has been detached"):
                    close()
            peer.shutdown(socket.SHUT_WR)
            raw.close()
            assert peers.read_all(peer) == b"all"


def test_a_reset_is_an_error_of_the_read() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, ringmain.open(f"127.0.0.1:{listener.getsockname()[1]}") as file:
        sock, _ = listener.accept()
        sock.sendall(b"abc")
        assert file.read(3) == b"abc"
        peers.close_with_reset(sock)
        with pytest.raises(errors.ReceiveError, match="after 3 bytes"):
            file.read()


def test_blocks_and_linger_are_those_of_the_loader_behind_it(serve: Serve) -> None:
    for options, expected in (({}, (1 << 20, 0.001)), ({"block_size": 4096, "linger": 0.5}, (4096, 0.5))):
        with ringmain.open(serve(b"some"), **options) as file:  # type: ignore[call-overload]
            flow = file.raw.loader.flow
            assert (flow.ring.block_size, flow.linger) == expected
            assert file.read() == b"some"


@pytest.mark.parametrize(
    ("mode", "options", "said"),
    [
        ("wb", {"linger": 0}, "linger= with mode 'wb': for reading only; leave it out"),
        ("wb", {"block_size": 1}, "block_size= with mode 'wb': for reading only"),
        ("rb", {"block_size": 0}, "block_size=0: it holds nothing; give at least 1"),
        ("rb", {"linger": -1}, "linger=-1: not a number of seconds"),
        ("rb", {"buffer_size": 0}, "buffer_size=0: it holds nothing"),
    ],
)
def test_what_a_file_cannot_have_is_refused_before_it_dials(mode: Any, options: Any, said: str) -> None:
    with pytest.raises(ringmain.UsageError) as caught:
        ringmain.open(f"127.0.0.1:{peers.free_port()}", mode, **options)
    assert str(caught.value).startswith(said)
