"""What strangers say cannot control the terminal that shows it, by whichever way it comes in."""

import datetime
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import peers
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from streams import server_at

import ringmain
from ringmain.bench.table import verdict_table
from ringmain.errors import printable

# Colours, a title, a line of another program, C1's own escape, a next line, a text turned round, lines of Unicode.
HOSTILE = "\x1b[31mred\x1b]0;title\x07\rringmain: fine\nline\x9b2J\x85\u202eesrever\u2066\u2028\u2029\x7f\x00end"


def is_clean(text: str) -> bool:
    """Tell whether a terminal would only show a text, and go to the next line where that ends."""
    return all(line.isprintable() for line in text.split("\n"))


def test_what_would_control_a_terminal_is_escaped_and_the_rest_left_alone() -> None:
    escaped = printable(HOSTILE)
    assert escaped.isprintable()
    assert escaped.startswith(r"\x1b[31mred\x1b]0;title\x07\rringmain: fine\nline\x9b2J\x85\u202eesrever\u2066\u2028")
    assert printable(escaped) == escaped
    assert printable("Grüße, 世界: 100 % 'ok' \\ é") == "Grüße, 世界: 100 % 'ok' \\ é"
    assert printable("\udc9b\U000e0041") == r"\udc9b\U000e0041"  # of a file's name that is not UTF-8; a tag


def test_an_error_is_one_printable_line_for_a_program_too() -> None:
    error = ringmain.ReceiveError(f"load from {HOSTILE}", HOSTILE, HOSTILE)
    assert str(error).isprintable()
    assert error.why == HOSTILE
    assert str(ringmain.ParseError(HOSTILE, 0, HOSTILE)).isprintable()


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 %b 198.51.100.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%%%b ::1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 %b 2\r\n",
        b"PROXY UNKNOWN %b\r\n",
        b"%b",
    ],
)
def test_nothing_of_a_proxy_header_reaches_the_terminal_as_it_is(bench: peers.Bench, header: bytes) -> None:
    words = HOSTILE.replace("\n", " ").replace("\r", " ").encode()[:60]
    with server_at() as listener:
        destination = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        relay, port = bench.relaying(destination, "-v", "--accept-proxy", "--send-proxy", "v2")
        with peers.connect(port) as sock:
            sock.sendall(header % words)
            peers.send_no_more(sock)
            peers.eventually(lambda: relay.stderr.count("\n") >= 2, "a line")
        assert is_clean(relay.stderr)


@pytest.mark.parametrize("as_json", [False, True], ids=["line", "json"])
def test_nothing_of_a_bench_servers_error_reaches_the_terminal_as_it_is(bench: peers.Bench, as_json: bool) -> None:
    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(peers.TIMEOUT)
            sock.recv(1 << 16)
            sock.sendall(json.dumps({"error": HOSTILE}).encode() + b"\n")
            sock.recv(1 << 16)

    with server_at() as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        options = ["--json"] if as_json else []
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        client = bench.ringmain("bench", url, *options, stdout=subprocess.PIPE)
        stdout = client.process.stdout.read().decode()
        assert client.wait() != 0
        thread.join(peers.TIMEOUT)
    assert "red" in client.stderr
    assert client.stderr.count("\n") == 1
    assert is_clean(client.stderr)
    assert is_clean(stdout)
    assert not as_json or "red" in json.loads(stdout)["error"]


def test_nothing_of_a_bench_clients_question_reaches_the_terminal_as_it_is(bench: peers.Bench) -> None:
    server, port = bench.serving_measurements("-v")
    for question in (HOSTILE.encode(), json.dumps({HOSTILE: HOSTILE, "time": HOSTILE}).encode()):
        with peers.connect(port) as sock:
            sock.sendall(b"ringmain bench 2 " + b"0" * 32 + b"\n" + question.replace(b"\n", b"") + b"\n")
            peers.send_no_more(sock)
            peers.read_all(sock)
    with peers.connect(port) as sock:
        sock.sendall(HOSTILE.encode() * 10)
        peers.send_no_more(sock)
    peers.eventually(lambda: server.stderr.count("\n") >= 2, "a line")
    assert is_clean(server.stderr)


def test_a_cell_of_a_table_is_printable() -> None:
    row = {"ratio": 1.0, "low": 1.0, "high": 1.0, "verdict": HOSTILE}
    figures = {"gb_per_second": row, "cpu_seconds_per_gb": row}
    table = verdict_table({HOSTILE: {"figures": figures, "verdict": "ok"}}, 1000)
    assert is_clean(table)
    assert table.count("\n") == 5  # a head of two lines, two rows, and the verdict behind an empty line


def certificate(folder: Path, name: str) -> Path:
    """Write a key and a certificate that names its owner so."""
    key = ec.generate_private_key(ec.SECP256R1())
    owner = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.TITLE, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(owner).issuer_name(owner).public_key(key.public_key())
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    signed = made.serial_number(x509.random_serial_number()).sign(key, hashes.SHA256())
    path = folder / "named.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + signed.public_bytes(pem))
    path.chmod(0o600)
    return path


def test_nothing_of_a_certificate_reaches_the_terminal_as_it_is(bench: peers.Bench, tmp_path: Path) -> None:
    named = certificate(tmp_path, "\x1b[2J\x9b\u202e")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(named)
    with server_at() as listener:
        loader = bench.ringmain("load", "-v", "--connect", f"tcps://127.0.0.1:{listener.getsockname()[1]}")
        sock, _ = listener.accept()
        with pytest.raises(ssl.SSLError), sock:
            context.wrap_socket(sock, server_side=True)
        assert loader.wait() == 60
    assert is_clean(loader.stderr)
    assert loader.stderr.count("\n") == 1


@pytest.mark.parametrize("way", ["option", "environment", "file", "host"])
def test_nothing_of_an_argument_reaches_the_terminal_as_it_is(bench: peers.Bench, way: str) -> None:
    words = HOSTILE.replace("\x00", "")
    more: dict[str, Any] = {"env": os.environ | {"RINGMAIN_LOAD_GATE": words}} if way == "environment" else {}
    arguments = {
        "option": ["load", f"--{words}"],
        "environment": ["load", "tcp://127.0.0.1:0"],
        "file": ["save", "-I", words.replace("/", ""), "tcp://127.0.0.1:1"],
        "host": ["load", f"tcp://{words}:1"],
    }[way]
    program = bench.ringmain(*arguments, **more)
    assert program.wait() in (2, 26)
    assert re.search("red", program.stderr)
    assert is_clean(program.stderr)
    assert program.stderr.count("\n") == 1
