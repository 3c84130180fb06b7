"""tcp:// and tcps:// where fsspec opens URLs."""

import contextlib
import gzip
import io
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from conftest import Certificates
from feeding import library, numbered

import ringmain

fsspec = library("fsspec")
DATA = b"n,text\n" + b"".join(b"%d,text %d\n" % (n, n) for n in range(50_000))
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Listen, and send each client its bytes; return host and port."""
    with contextlib.ExitStack() as stack:

        def start(*parts: bytes, certfile: Any = None) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def send() -> None:
                for part in parts:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        return
                    if certfile is not None:
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(certfile)
                        sock = context.wrap_socket(sock, server_side=True)
                    with contextlib.suppress(OSError):
                        sock.sendall(part)
                        if certfile is not None:
                            sock.unwrap()
                    sock.close()

            thread = threading.Thread(target=send)
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield start


def test_fsspec_finds_both_by_their_entry_points() -> None:
    for protocol in ("tcp", "tcps"):
        filesystem = fsspec.filesystem(protocol)
        assert type(filesystem).__module__ == "ringmain.feeds.fsspec"
        assert filesystem.protocol == protocol


def test_a_url_opens_as_a_file(serve: Serve) -> None:
    with fsspec.open(f"tcp://{serve(DATA)}", "rb") as file:
        assert isinstance(file, ringmain.Reader)
        assert peers.sha256(file.read()) == peers.sha256(DATA)


def test_text_and_compression_are_added_by_fsspec(serve: Serve) -> None:
    with fsspec.open(f"tcp://{serve(gzip.compress(DATA))}", "rt", compression="gzip", newline="") as file:
        assert file.read().encode() == DATA


def test_tls_takes_its_settings_as_storage_options(serve: Serve, certificates: Certificates) -> None:
    host = serve(DATA, certfile=certificates.server)
    with fsspec.open(f"tcps://{host}", "rb", cafile=str(certificates.ca)) as file:
        assert file.read() == DATA


def test_what_is_written_arrives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with fsspec.open(f"tcp://127.0.0.1:{listener.getsockname()[1]}", "wb") as file:
            sock, _ = listener.accept()
            file.write(b"written")
        with sock:
            assert peers.read_all(sock) == b"written"


def test_with_listen_it_waits_for_a_client() -> None:
    port = peers.free_port()

    def client() -> None:
        peers.wait_for_port(port)
        with peers.connect(port) as sock:
            sock.sendall(DATA)

    thread = threading.Thread(target=client)
    thread.start()
    with fsspec.open(f"tcp://127.0.0.1:{port}", "rb", listen=True) as file:
        assert file.read() == DATA
    thread.join()


def test_pandas_reads_a_url(serve: Serve) -> None:
    pandas = library("pandas")
    frame = pandas.read_csv(f"tcp://{serve(DATA)}")
    pandas.testing.assert_frame_equal(frame, pandas.read_csv(io.BytesIO(DATA)))


def test_dask_reads_a_url(serve: Serve) -> None:
    bag = library("dask.bag")
    data = numbered(1000)
    records = bag.read_text(f"tcp://{serve(data)}").map(json.loads).compute(scheduler="sync")
    assert records == [json.loads(line) for line in data.splitlines()]


def test_cat_brings_all_of_one_connection_and_a_second_read_is_another(serve: Serve) -> None:
    url = f"tcp://{serve(b'first', b'second')}"
    filesystem = fsspec.filesystem("tcp")
    assert filesystem.cat(url) == b"first"
    assert filesystem.cat_file(url) == b"second"


def test_what_cannot_work_says_so(serve: Serve) -> None:
    filesystem = fsspec.filesystem("tcp")
    url = f"tcp://{serve(DATA)}"
    assert filesystem.info(url) == {"name": url.removeprefix("tcp://"), "size": None, "type": "file"}
    attempts: list[tuple[Callable[[], Any], str]] = [
        (lambda: filesystem.ls(url), "cannot be listed"),
        (lambda: filesystem.glob("tcp://*"), "cannot be listed"),
        (lambda: filesystem.find(url), "cannot be listed"),
        (lambda: filesystem.size(url), "no size"),
        (lambda: filesystem.exists(url), "opening"),
        (lambda: filesystem.cat_file(url, 1, 2), "no ranges"),
        (lambda: filesystem.read_block(url, 0, 10), "no ranges"),
    ]
    assert filesystem.glob("tcp://[::1]:8000") == ["[::1]:8000"]
    for attempt, words in attempts:
        with pytest.raises(io.UnsupportedOperation, match=words):
            attempt()
    with pytest.raises(ValueError, match="couldn't determine file size"):  # dask's own words
        library("dask.bag").read_text(url, blocksize=1000)
    with fsspec.open(url, "rb") as file:
        file.read(10)
        with pytest.raises(io.UnsupportedOperation, match="no position"):
            file.seek(0)
        assert file.read() == DATA[10:]
        assert file.read() == b""
    with pytest.raises(ringmain.UsageError, match="mode 'ab'"):
        filesystem.open(url, "ab")


@pytest.mark.parametrize("host", ["::1", "0:0::1", "::0:1"])
def test_the_colons_of_an_address_are_no_chain_of_file_systems(host: str) -> None:
    pandas = library("pandas")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:

        def send() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(DATA)

        thread = threading.Thread(target=send)
        thread.start()
        url = f"tcp://[{host}]:{listener.getsockname()[1]}"
        frame = pandas.read_csv(url, storage_options={"connect_timeout": peers.TIMEOUT})
        assert len(frame) == 50_000
        with fsspec.open(url, "rb") as file:
            assert file.read() == DATA
        thread.join()
