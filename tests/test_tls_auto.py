"""Plain clients and those of TLS at one port (`--tls-auto`), and application protocols (`--alpn`)."""

import contextlib
import json
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import peers
import pytest
from conftest import Certificates
from test_tls_clients import server

PIN = "ab" * 32


def tls_client(port: int, ca: Path, data: bytes) -> None:
    with peers.connect_tls(port, ca) as sock:
        sock.sendall(data)
        sock.unwrap()


def plain_client(port: int, data: bytes) -> None:
    with peers.connect(port) as sock:
        sock.sendall(data)


def test_plain_and_tls_clients_are_served_at_one_port(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    stats = tmp_path / "stats"
    options = ["--tls-auto", "--certfile", certificates.server, "-O", tmp_path / "{number}", "--stats-file", stats]
    loader, port = bench.listening("load", *options)
    sent = [peers.payload(300_000, 1), peers.payload(300_000, 2), b"\x16", b"\x16\x04 no TLS", b"\x03"]
    for number, data in enumerate(sent):
        if number == 0:
            tls_client(port, certificates.ca, data)
        else:
            plain_client(port, data)
        peers.eventually(lambda number=number: stats.exists() and stats.read_text().count("\n") == number + 1, "a row")
    assert [peers.sha256(tmp_path / str(it + 1)) for it in range(len(sent))] == [peers.sha256(data) for data in sent]
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [row["tls"] for row in rows] == ["TLSv1.3"] + [None] * 4
    assert {row["verdict"] for row in rows} == {"ended"}
    assert loader.stderr == f"listening on tcps://127.0.0.1:{port}\n"


def test_many_of_both_kinds_are_merged(bench: peers.Bench, certificates: Certificates, tmp_path: Path) -> None:
    got = tmp_path / "got"
    options = ["--tls-auto", "--certfile", certificates.server, "--max-connections", 8, "-O", got]
    _, port = bench.listening("load", *options)
    data = [b"".join(b"%d %d\n" % (number, line) for line in range(20_000)) for number in range(6)]
    threads = [
        threading.Thread(target=plain_client, args=[port, it])
        if number % 2
        else threading.Thread(target=tls_client, args=[port, certificates.ca, it])
        for number, it in enumerate(data)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(peers.TIMEOUT)
    peers.eventually(lambda: got.stat().st_size == sum(map(len, data)), "all lines")
    lines = got.read_bytes().splitlines(keepends=True)
    for number, it in enumerate(data):
        mine = b"".join(line for line in lines if line.startswith(b"%d " % number))
        assert peers.sha256(mine) == peers.sha256(it)


def test_a_relay_takes_both_and_answers_each_in_kind(bench: peers.Bench, certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(peers.TIMEOUT)
        options = ["--source-tls-auto", "--source-certfile", certificates.server]
        _, port = bench.relaying(f"tcp://127.0.0.1:{listener.getsockname()[1]}", *options)
        for tls in (True, False):
            with peers.connect_tls(port, certificates.ca) if tls else peers.connect(port) as client:
                client.sendall(b"question")
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(peers.TIMEOUT)
                    assert sock.recv(100) == b"question"
                    sock.sendall(b"answer")
                    assert client.recv(100) == b"answer"


@pytest.mark.parametrize("start", [b"", b"\x16", b"\x16\x03"])
def test_who_says_too_little_has_the_time_of_a_handshake(
    bench: peers.Bench, certificates: Certificates, start: bytes, tmp_path: Path
) -> None:
    got = tmp_path / "got"
    options = ["--tls-auto", "--certfile", certificates.server, "--handshake-timeout", "3s", "-O", got]
    loader, port = bench.listening("load", *options)
    with peers.connect(port) as sock:
        sock.sendall(start)
        loader.says("not done within 3 s; with --tls-auto a client must send first; else raise --handshake-timeout")
        assert peers.ends_in_reset(sock)
    plain_client(port, b"the next one")
    peers.eventually(lambda: got.read_bytes() == b"the next one", "what the next one sends")


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("load", ["--client-ca", "x"], "--tls-auto with --client-ca: plain clients, who have no certificate, would"),
        ("load", ["--fingerprint", PIN], "--tls-auto with --fingerprint: plain clients"),
        ("load", ["--connect"], "--tls-auto: there is nothing to listen at; leave it out"),
        ("save", ["--listen"], "--tls-auto: clients that receive send nothing first"),
    ],
)
def test_it_is_refused_where_it_makes_no_sense(
    bench: peers.Bench, certificates: Certificates, verb: str, arguments: list[str], words: str
) -> None:
    program = bench.ringmain(verb, "--tls-auto", "--certfile", certificates.server, *arguments, "127.0.0.1:0")
    assert program.wait() == 2
    assert words in program.stderr
    assert program.stderr.count("\n") == 1


@pytest.mark.parametrize(("offered", "agreed"), [("other,two", True), ("other", False), (None, False)])
def test_a_client_has_to_offer_a_protocol_of_ours(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, offered: str | None, agreed: bool
) -> None:
    got = tmp_path / "got"
    options = ["--tls", "--certfile", certificates.server, "--alpn", "one", "--alpn", "two", "-O", got]
    loader, port = bench.listening("load", *options)
    client = [peers.need("openssl"), "s_client", "-no_ign_eof", "-connect", f"127.0.0.1:{port}"]
    client += ["-alpn", offered] if offered else []
    done = subprocess.run(client, input=b"data", capture_output=True, check=False)
    if agreed:
        assert b"ALPN protocol: two" in done.stdout
        peers.eventually(lambda: got.read_bytes() == b"data", "what it sends")
    else:
        loader.says("it has not agreed on an application protocol (ALPN); the peer must know one of --alpn: one, two\n")
        assert got.read_bytes() == b""


@pytest.mark.parametrize("known", ["two", "other", None])
def test_a_server_has_to_know_a_protocol_of_ours(
    bench: peers.Bench, certificates: Certificates, known: str | None
) -> None:
    port = peers.free_port()
    command = [peers.need("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(certificates.server)]
    command += ["-alpn", known] if known else []
    bench.start(command, stdin=subprocess.PIPE)
    peers.wait_for_port(port)
    options = ["--cafile", certificates.ca, "--alpn", "one", "--alpn", "two"]
    saver = bench.ringmain("save", "-I", bench.file(b"data"), *options, f"tcps://127.0.0.1:{port}")
    assert saver.wait() == (0 if known == "two" else 35), saver.stderr
    assert saver.stderr.count("\n") == (known != "two")
    assert ("--alpn" in saver.stderr) == (known != "two")


def test_an_agreed_protocol_is_the_listeners_choice(bench: peers.Bench, certificates: Certificates) -> None:
    _, port = bench.listening("load", "--tls", "--certfile", certificates.server, "--alpn", "one", "--alpn", "two")
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.set_alpn_protocols(["two", "one"])
    with context.wrap_socket(peers.connect(port), server_hostname="localhost") as sock:
        assert sock.selected_alpn_protocol() == "one"


def test_names_of_protocols_are_looked_at(bench: peers.Bench) -> None:
    saver = bench.ringmain("save", "--alpn", "h\u00e9", "tcps://127.0.0.1:1")
    assert saver.wait() == 2
    assert "--alpn 'h\u00e9': not 1 to 255 ASCII characters" in saver.stderr


def test_one_that_offers_none_is_fine_where_none_is_asked_for(bench: peers.Bench, certificates: Certificates) -> None:
    with server(certificates.server) as (port, got):
        saver = bench.ringmain("save", "--insecure", "-I", bench.file(b"x"), f"tcps://127.0.0.1:{port}")
        assert saver.wait() == 0, saver.stderr
        peers.eventually(lambda: got == [b"x"], "the byte")


@pytest.mark.parametrize("said", [b"", b"\x16"], ids=["nothing", "a byte"])
def test_a_client_that_stays_silent_is_reset_for_it_may_be_a_plain_one(
    bench: peers.Bench, certificates: Certificates, said: bytes
) -> None:
    options = ["--tls-auto", "--certfile", certificates.server, "--handshake-timeout", "1s"]
    _, port = bench.listening("load", *options)
    with peers.connect(port) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(said)
        assert peers.ends_in_reset(sock)
