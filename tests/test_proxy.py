"""The PROXY protocol, read and sent by relay, with haproxy at the other end."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from conftest import Certificates
from streams import connection, read, sending, server_at

from ringmain.errors import ReceiveError
from ringmain.net.proxy import header_for

Run = Callable[[Any], Any]
DATA = peers.payload(300_000)
V2 = b"\r\n\r\n\x00\r\nQUIT\n"
FOUR = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + (1111).to_bytes(2) + (22).to_bytes(2)
# Of the headers that they are in below.
CHECKSUM, CHECKSUM_OF_NOBODY = (0x4A388FA6).to_bytes(4), (0x3EC9894E).to_bytes(4)


def haproxy(bench: peers.Bench, bind: str, server: str, name: str = "haproxy", *lines: str) -> int:
    """Start haproxy between a free port of its own and a server; return the port."""
    port = peers.free_port()
    config = bench.folder / f"{name}.cfg"
    config.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
        f"listen relay\n bind 127.0.0.1:{port} {bind}\n server there {server}\n"
        + "".join(f" {line}\n" for line in lines)
    )
    bench.start([peers.need("haproxy"), "-db", "-f", str(config)])
    peers.wait_for_port(port)
    return port


@contextlib.contextmanager
def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(peers.TIMEOUT)
        yield sock


def line(sock: socket.socket) -> bytes:
    """Read a line and nothing behind it."""
    got = b""
    while not got.endswith(b"\n"):
        got += sock.recv(1)
    return got


@pytest.mark.parametrize("header", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
def test_the_client_that_haproxy_tells_of_is_the_peer(bench: peers.Bench, header: str) -> None:
    stats = bench.folder / "stats"
    with server_at() as listener:
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(destination, "-o", "-v", "--accept-proxy", "--stats-file", stats)
        with peers.connect(haproxy(bench, "", f"127.0.0.1:{port} {header}")) as sock, accepted(listener) as server:
            sock.sendall(DATA)
            sock.shutdown(socket.SHUT_WR)
            assert peers.sha256(peers.read_all(server)) == peers.sha256(DATA)
            peer = f"127.0.0.1:{sock.getsockname()[1]}"
        relay.wait()
    source = json.loads(stats.read_text())["source"]
    assert source["peer"] == peer != source["proxy"]
    assert f"{peer}: connected" in relay.stderr


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_understands_the_header_that_is_sent(bench: peers.Bench, version: str) -> None:
    with server_at() as listener:
        between = haproxy(bench, "accept-proxy", f"127.0.0.1:{listener.getsockname()[1]} send-proxy")
        _, port = bench.relaying(f"tcp://127.0.0.1:{between}", "--send-proxy", version)
        with peers.connect(port) as sock, accepted(listener) as server:
            sock.sendall(DATA)
            sock.shutdown(socket.SHUT_WR)
            assert line(server) == b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (sock.getsockname()[1], port)
            assert peers.sha256(peers.read_all(server)) == peers.sha256(DATA)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_was_told_is_told_on_and_headers_come_before_tls(
    bench: peers.Bench, certificates: Certificates, version: str
) -> None:
    with server_at() as listener:
        end, middle = bench.relaying(
            f"tcp://127.0.0.1:{listener.getsockname()[1]}",
            *("--accept-proxy", "--send-proxy", "v1", "--source-certfile", certificates.server),
            scheme="tcps",
        )
        _, port = bench.relaying(
            f"tcps://127.0.0.1:{middle}",
            *("--accept-proxy", "--send-proxy", version),
            *("--destination-cafile", certificates.ca, "--destination-server-name", "localhost"),
        )
        with peers.connect(port) as sock:
            sock.sendall(b"PROXY TCP6 2001:db8::1 2001:db8::2 1111 22\r\n" + DATA)
            with accepted(listener) as server:
                assert line(server) == b"PROXY TCP6 2001:db8::1 2001:db8::2 1111 22\r\n"
                assert peers.sha256(read(server, len(DATA))) == peers.sha256(DATA)
                server.sendall(DATA)
                assert peers.sha256(read(sock, len(DATA))) == peers.sha256(DATA)
        assert "Traceback" not in end.stderr


@pytest.mark.parametrize("words", [b"TCP4 192.0.2.1 198.51.100.2", b"TCP6 2001:db8::1 2001:db8::2"])
def test_haproxy_understands_version_2_of_what_version_1_told(bench: peers.Bench, words: bytes) -> None:
    with server_at() as listener:
        between = haproxy(bench, "accept-proxy", f"127.0.0.1:{listener.getsockname()[1]} send-proxy")
        _, port = bench.relaying(f"tcp://127.0.0.1:{between}", "--accept-proxy", "--send-proxy", "v2")
        header = b"PROXY " + words + b" 1111 22\r\n"
        with peers.connect(port) as sock, sending(sock, header + DATA), accepted(listener) as server:
            assert line(server) == header
            assert peers.sha256(read(server, len(DATA))) == peers.sha256(DATA)


def test_haproxy_finds_the_checksum_right_of_what_is_told_on(bench: peers.Bench) -> None:
    with server_at() as listener:
        behind = haproxy(bench, "accept-proxy", f"127.0.0.1:{listener.getsockname()[1]} send-proxy", "behind")
        _, port = bench.relaying(f"tcp://127.0.0.1:{behind}", "--accept-proxy", "--send-proxy", "v2")
        options = "send-proxy-v2 proxy-v2-options crc32c,unique-id"
        before = haproxy(bench, "", f"127.0.0.1:{port} {options}", "before", "unique-id-format %pid-%rt")
        with peers.connect(before) as sock, sending(sock, DATA), accepted(listener) as server:
            told = line(server)
            assert told == b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (sock.getsockname()[1], before)
            assert peers.sha256(read(server, len(DATA))) == peers.sha256(DATA)


def test_what_else_a_header_tells_goes_on_as_it_came(bench: peers.Bench) -> None:
    more = b"\x02\x00\x03a.b\xe0\x00\x01x\xe0\x00\x01y\x04\x00\x00"  # a type twice, and an empty one
    header = V2 + b"\x21\x11" + (12 + len(more)).to_bytes(2) + FOUR + more
    with server_at() as listener:
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        _, port = bench.relaying(destination, "--accept-proxy", "--send-proxy", "v2")
        with peers.connect(port) as sock:
            sock.sendall(header + b"data")
            with accepted(listener) as server:
                assert read(server, len(header) + 4) == header + b"data"


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 1111 22\r\n", "192.0.2.1:1111"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1111 22\r\n", "[2001:db8::1]:1111"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2 and whatever\r\n", None),
        (V2 + b"\x21\x11\x00\x0c" + FOUR, "192.0.2.1:1111"),
        (V2 + b"\x21\x11\x00\x13" + FOUR + b"\x04\x00\x04\x00\x00\x00\x00", "192.0.2.1:1111"),  # a TLV behind it
        (V2 + b"\x20\x00\x00\x00", None),  # LOCAL: a health check of the proxy itself
        (V2 + b"\x20\x11\x00\x0e" + FOUR + b"\x04\x00", None),  # which may say anything else
        (V2 + b"\x21\x00\x00\x03abc", None),
        (V2 + b"\x21\x00\x00\x07\x03\x00\x04" + CHECKSUM_OF_NOBODY, None),
        (V2 + b"\x21\x12\x00\x0c" + FOUR, None),  # UDP
        (V2 + b"\x21\x31\x00\xd8" + bytes(216), None),
        (V2 + b"\x21\x11\x00\x13" + FOUR + b"\x03\x00\x04" + CHECKSUM, "192.0.2.1:1111"),
    ],
    ids=[
        *("v1-4", "v1-6", "v1-unknown", "v1-unknown-more", "v2-4", "v2-tlv", "v2-local"),
        *("v2-local-more", "v2-unspecified", "v2-unspecified-checksum", "v2-udp", "v2-unix", "v2-checksum"),
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_header_is_read_and_not_a_byte_more(
    bench: peers.Bench, header: bytes, peer: str | None, in_pieces: bool
) -> None:
    stats = bench.folder / "stats"
    with server_at() as listener:
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(destination, "-o", "--accept-proxy", "--stats-file", stats)
        with peers.connect(port) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            own = f"127.0.0.1:{sock.getsockname()[1]}"
            if in_pieces:
                for byte in header:
                    sock.send(bytes([byte]))
                sock.sendall(DATA)
            else:
                sock.sendall(header + DATA)
            sock.shutdown(socket.SHUT_WR)
            with accepted(listener) as server:
                assert peers.sha256(peers.read_all(server)) == peers.sha256(DATA)
        assert relay.wait() == 0
    source = json.loads(stats.read_text())["source"]
    assert (source["peer"], source["proxy"]) == (peer or own, own)


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 nonsense\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 99999 22\r\n",
        b"PROXY TCP4 \xff\xfe\r\n",
        V2 + b"\x21\x11\x00\x04abcd",  # too short for addresses
        V2 + b"\x31\x11\x00\x0c" + FOUR,  # version 3
        V2[:7],
        b"",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 +80 22\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 8_0 22\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 80 022\r\n",
        b"PROXY TCP4 192.0.2.1  198.51.100.2 80 22\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1111 22\r\n",
        b"PROXY TCP6 fe80::1%\x1b[2Jx 2001:db8::2 1111 22\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.2 1111 22\r\n",
        b"PROXY UNKNOWN\n",
        V2 + b"\x21\x10\x00\x0c" + FOUR,  # IPv4, but over nothing
        V2 + b"\x22\x11\x00\x0c" + FOUR,  # a command that there is not
        V2 + b"\x21\x11\x00\x0e" + FOUR + b"\x04\x00",  # half of a TLV's head
        V2 + b"\x21\x11\x00\x10" + FOUR + b"\x04\x00\x04\x00",  # a TLV that is longer than the header
        V2 + b"\x21\x11\x00\x13" + FOUR + b"\x03\x00\x04\x00\x00\x00\x00",  # a wrong CRC32C
        V2 + b"\x21\x00\x00\x07\x03\x00\x04\x00\x00\x00\x00",  # the same, of nobody's addresses
    ],
    ids=[
        *("http", "words", "long", "port", "bytes", "short", "version", "cut", "nothing"),
        *("plus", "underscore", "zero", "blanks", "zone", "escape", "family", "line", "transport", "command"),
        *("tlv-head", "tlv-size", "checksum", "checksum-unspecified"),
    ],
)
def test_a_bad_header_gets_one_warning_and_the_next_client_is_served(bench: peers.Bench, header: bytes) -> None:
    with server_at() as listener:
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(destination, "--accept-proxy")
        with peers.connect(port) as sock:
            sock.sendall(header)
            peers.send_no_more(sock)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        relay.says("PROXY header from 127.0.0.1:")
        with peers.connect(port) as sock:
            sock.sendall(b"PROXY UNKNOWN\r\nnext")
            with accepted(listener) as server:
                assert read(server, 4) == b"next"
        assert relay.stderr.count("\n") == 2  # where it listens, and the warning


def test_a_client_that_sends_no_header_is_given_up(bench: peers.Bench) -> None:
    relay, port = bench.relaying("tcp://127.0.0.1:1", "--accept-proxy", "--handshake-timeout", "200ms")
    # Its time may be over before it says a word.
    with contextlib.suppress(ConnectionError), peers.connect(port) as sock:
        sock.sendall(b"PROXY TCP4")
        assert sock.recv(1) == b""
    relay.says("none came within 0.2 s")


def test_a_client_that_left_is_not_laid_at_the_destination() -> None:
    with connection() as (peer, client):
        peers.close_with_reset(peer)
        peers.eventually(lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        with pytest.raises(ReceiveError, match="the client that it names has left"):
            header_for("the destination", "v2", client, None)


def test_a_client_without_a_proper_header_is_reset(bench: peers.Bench) -> None:
    relay, port = bench.relaying("tcp://127.0.0.1:1", "--accept-proxy")
    with peers.connect(port) as client:
        client.sendall(b"PROXY TCP4 nobody\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    relay.says("not understood")
