"""Every peer program, in both roles, plain and under TLS, by SHA-256 of the payload."""

import socket
import subprocess
from pathlib import Path

import peers
import pytest
from conftest import Certificates

SIZES = [0, 1, 65_537, 64 << 20]

PLAIN_SENDERS = {
    "socat": "socat -u - TCP:127.0.0.1:{port}",
    "ncat": "ncat --send-only 127.0.0.1 {port}",
    "nc": "nc.openbsd -N 127.0.0.1 {port}",
}
PLAIN_RECEIVERS = {
    "socat": "socat -u TCP:127.0.0.1:{port} -",
    "ncat": "ncat --recv-only 127.0.0.1 {port}",
    "nc": "nc.openbsd -d 127.0.0.1 {port}",
}
PLAIN_LISTENERS = {
    "socat": "socat -u TCP-LISTEN:{port},reuseaddr,bind=127.0.0.1 -",
    "ncat": "ncat -l --recv-only 127.0.0.1 {port}",
    "nc": "nc.openbsd -l -d 127.0.0.1 {port}",
}
PLAIN_SOURCES = {
    "socat": "socat -u - TCP-LISTEN:{port},reuseaddr,bind=127.0.0.1",
    "ncat": "ncat -l --send-only 127.0.0.1 {port}",
    "nc": "nc.openbsd -l -N 127.0.0.1 {port}",
}
TLS_SENDERS = {
    "openssl": "openssl s_client -quiet -no_ign_eof -verify_return_error -CAfile {ca} {openssl} -connect "
    "127.0.0.1:{port}",
    "socat": "socat -u - OPENSSL:localhost:{port},pf=ip4,cafile={ca},{socat}",
    "ncat": "ncat --send-only --ssl-verify --ssl-trustfile {ca} -4 localhost {port}",
    "gnutls": "gnutls-cli --logfile=/dev/null --x509cafile={ca} --priority={gnutls} -p {port} localhost",
}
TLS_RECEIVERS = {
    "openssl": "openssl s_client -quiet -verify_return_error -CAfile {ca} {openssl} -connect 127.0.0.1:{port}",
    "socat": "socat -u OPENSSL:localhost:{port},pf=ip4,cafile={ca},{socat} -",
    "ncat": "ncat --recv-only --ssl-verify --ssl-trustfile {ca} -4 localhost {port}",
    "gnutls": "gnutls-cli --logfile=/dev/null --x509cafile={ca} --priority={gnutls} -p {port} localhost",
}
TLS_LISTENERS = {
    "openssl": "openssl s_server -quiet -naccept 1 -cert {server} {openssl} -accept {port}",
    "socat": "socat -u OPENSSL-LISTEN:{port},reuseaddr,cert={server},verify=0,{socat} -",
    "ncat": "ncat -l --recv-only --ssl --ssl-cert {server} --ssl-key {server} 127.0.0.1 {port}",
}
TLS_SOURCES = {
    "openssl": "openssl s_server -quiet -naccept 1 -cert {server} {openssl} -accept {port}",
    "socat": "socat -u - OPENSSL-LISTEN:{port},reuseaddr,cert={server},verify=0,{socat}",
    "ncat": "ncat -l --send-only --ssl --ssl-cert {server} --ssl-key {server} 127.0.0.1 {port}",
}
GNUTLS_SERVER = (
    "gnutls-serv --echo --quiet --x509certfile={server} --x509keyfile={server} --priority={gnutls} -p {port}"
)
VERSIONS = ["1.2", "1.3"]


def with_sizes(programs: dict[str, str]) -> pytest.MarkDecorator:
    """Each program with both versions and every size; the largest with two of them."""
    cases = [(peer, version, 100_003) for peer in programs for version in VERSIONS]
    cases += [(peer, "1.3", size) for peer in programs for size in (0, 1)]
    cases += [(peer, "1.3", 64 << 20) for peer in ("openssl", "socat")]
    return pytest.mark.parametrize(("peer", "version", "size"), cases)


def text(size: int) -> bytes:
    """Return hexadecimal digits: s_client takes a Q at the beginning of what it reads for a command."""
    return peers.payload((size + 1) // 2).hex().encode()[:size]


def command(template: str, port: int, certificates: Certificates | None = None, version: str = "1.3") -> list[str]:
    words = template.split()
    peers.need(words[0])
    values = {
        "port": port,
        "openssl": f"-tls{version.replace('.', '_')}",
        "socat": f"openssl-min-proto-version=TLS{version},openssl-max-proto-version=TLS{version}",
        "gnutls": f"NORMAL:-VERS-ALL:+VERS-TLS{version}",
    }
    if certificates is not None:
        values |= {"ca": certificates.ca, "server": certificates.server}
    return [word.format(**values) for word in words]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PLAIN_SENDERS)
def test_load_gets_every_byte_of_a_plain_sender(bench: peers.Bench, tmp_path: Path, peer: str, size: int) -> None:
    data = bench.file(peers.payload(size))
    loader, port = bench.listening("load", "-o", "-O", tmp_path / "got")
    with data.open("rb") as source:
        assert bench.start(command(PLAIN_SENDERS[peer], port), stdin=source).wait() == 0
    assert loader.wait() == 0
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PLAIN_RECEIVERS)
def test_a_plain_receiver_gets_every_byte_of_save(bench: peers.Bench, tmp_path: Path, peer: str, size: int) -> None:
    data = bench.file(peers.payload(size))
    saver, port = bench.listening("save", "-o", "-I", data)
    with (tmp_path / "got").open("wb") as sink:
        assert bench.start(command(PLAIN_RECEIVERS[peer], port), stdout=sink).wait() == 0
    assert saver.wait() == 0
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PLAIN_LISTENERS)
def test_save_reaches_a_plain_listener(bench: peers.Bench, tmp_path: Path, peer: str, size: int) -> None:
    data, port = bench.file(peers.payload(size)), peers.free_port()
    with (tmp_path / "got").open("wb") as sink:
        listener = bench.start(command(PLAIN_LISTENERS[peer], port), stdout=sink)
        peers.wait_for_port(port)
        with data.open("rb") as source:
            saver = bench.ringmain("save", f"127.0.0.1:{port}", stdin=source)
            assert saver.wait() == 0, saver.stderr
        assert listener.wait() == 0
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", PLAIN_SOURCES)
def test_load_connects_to_a_plain_source(bench: peers.Bench, tmp_path: Path, peer: str, size: int) -> None:
    data, port = bench.file(peers.payload(size)), peers.free_port()
    with data.open("rb") as source:
        bench.start(command(PLAIN_SOURCES[peer], port), stdin=source)
        peers.wait_for_port(port)
        loader = bench.ringmain("load", "-c", "-O", tmp_path / "got", f"127.0.0.1:{port}")
        assert loader.wait() == 0, loader.stderr
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@with_sizes(TLS_SENDERS)
def test_load_gets_every_byte_of_a_tls_sender(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, peer: str, version: str, size: int
) -> None:
    data = bench.file(text(size))
    loader, port = bench.listening("load", "-o", "--tls", "--certfile", certificates.server, "-O", tmp_path / "got")
    with data.open("rb") as source:
        sender = bench.start(command(TLS_SENDERS[peer], port, certificates, version), stdin=source)
        # ncat ends its TLS streams without close_notify, which is what exit code 18 is for; no byte is missing.
        if peer == "ncat" and size == 0:
            loader.says("ended without close_notify after 0 bytes")  # nor does that count as the one connection
        else:
            assert loader.wait() == (18 if peer == "ncat" else 0), loader.stderr + sender.stderr
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@with_sizes(TLS_RECEIVERS)
def test_a_tls_receiver_gets_every_byte_of_save(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, peer: str, version: str, size: int
) -> None:
    data = bench.file(peers.payload(size))
    saver, port = bench.listening("save", "-o", "--tls", "--certfile", certificates.server, "-I", data)
    with (tmp_path / "got").open("wb") as sink:  # gnutls-cli leaves when its input ends, so that stays open
        receiver = bench.start(
            command(TLS_RECEIVERS[peer], port, certificates, version), stdin=subprocess.PIPE, stdout=sink
        )
        assert saver.wait() == 0, saver.stderr + receiver.stderr
        assert receiver.wait() == 0, receiver.stderr
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@with_sizes(TLS_LISTENERS)
def test_save_reaches_a_tls_listener(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, peer: str, version: str, size: int
) -> None:
    data, port = bench.file(peers.payload(size)), peers.free_port()
    with (tmp_path / "got").open("wb") as sink:
        listener = bench.start(
            command(TLS_LISTENERS[peer], port, certificates, version), stdin=subprocess.PIPE, stdout=sink
        )
        peers.wait_for_port(port)
        saver = bench.ringmain("save", "--cafile", certificates.ca, "-I", data, f"tcps://127.0.0.1:{port}")
        assert saver.wait() == 0, saver.stderr
        assert listener.wait() == 0
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@with_sizes(TLS_SOURCES)
def test_load_connects_to_a_tls_source(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, peer: str, version: str, size: int
) -> None:
    data, port = text(size), peers.free_port()
    source = bench.start(command(TLS_SOURCES[peer], port, certificates, version), stdin=subprocess.PIPE)
    peers.wait_for_port(port)
    trust = ["--cafile", certificates.ca]
    loader = bench.ringmain("load", "-c", "-v", *trust, "-O", tmp_path / "got", f"tcps://127.0.0.1:{port}")
    loader.says("connected")  # s_server hangs when its input and the handshake come at the same time
    source.process.stdin.write(data)
    source.process.stdin.close()
    assert loader.wait() == (18 if peer == "ncat" else 0), loader.stderr
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)


@pytest.mark.parametrize("version", VERSIONS)
def test_save_ends_well_at_a_gnutls_server_that_sends_everything_back(
    bench: peers.Bench, certificates: Certificates, version: str
) -> None:
    data, port = bench.file(peers.payload(100_003)), peers.free_port()
    bench.start(command(GNUTLS_SERVER, port, certificates, version))
    peers.wait_for_port(port)
    saver = bench.ringmain("save", "-v", "--cafile", certificates.ca, "-I", data, f"tcps://127.0.0.1:{port}")
    assert saver.wait() == 0, saver.stderr
    assert f"connected with TLSv{version}" in saver.stderr
    assert "ended after 100003 bytes" in saver.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_ringmain_talks_tls_with_python_both_ways(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates, size: int, version: str
) -> None:
    data = peers.payload(size)
    loader, port = bench.listening("load", "-o", "--tls", "--certfile", certificates.server, "-O", tmp_path / "got")
    with peers.connect_tls(port, certificates.ca, version=version) as sock:
        assert sock.version() == f"TLSv{version}"
        sock.sendall(data)
        sock.unwrap().close()
    assert loader.wait() == 0, loader.stderr
    assert peers.sha256(tmp_path / "got") == peers.sha256(data)

    saver, port = bench.listening("save", "-o", "--tls", "--certfile", certificates.server, "-I", bench.file(data))
    with peers.connect_tls(port, certificates.ca, version=version) as sock:
        assert peers.sha256(peers.read_all(sock)) == peers.sha256(data)
    assert saver.wait() == 0, saver.stderr


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dials", ["load", "save"])
def test_ringmain_talks_to_ringmain_through_pipes(
    bench: peers.Bench, certificates: Certificates, dials: str, size: int, tls: bool
) -> None:
    data = bench.file(peers.payload(size))
    ours = ["--tls", "--certfile", certificates.server] if tls else []
    theirs = ["--tls", "--cafile", certificates.ca] if tls else []
    with data.open("rb") as source:
        cat = bench.start(["cat"], stdin=source, stdout=subprocess.PIPE)
    stdin = cat.process.stdout
    if dials == "save":
        loader, port = bench.listening("load", "-o", *ours, stdout=subprocess.PIPE)
        saver = bench.ringmain("save", *theirs, f"127.0.0.1:{port}", stdin=stdin)
    else:
        saver, port = bench.listening("save", "-o", *ours, stdin=stdin)
        loader = bench.ringmain("load", "-c", *theirs, f"127.0.0.1:{port}", stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    assert peers.sha256(loader.process.stdout.read()) == peers.sha256(data)
    assert (loader.wait(), saver.wait()) == (0, 0), loader.stderr + saver.stderr


@pytest.mark.parametrize("host", ["[::1]", "localhost", "", "0.0.0.0", "[::]"])
def test_ipv6_names_and_every_interface_can_be_listened_at(bench: peers.Bench, host: str) -> None:
    loader, port = bench.listening("load", host=host, stdout=subprocess.PIPE)
    assert loader.process.stdout is not None
    assert f":{port}\n" in loader.stderr
    addresses = {"[::1]": ["::1"], "0.0.0.0": ["127.0.0.1"]}.get(host, ["127.0.0.1", "::1"])
    if host == "localhost":  # what it stands for is the machine's business
        addresses = [str(row[4][0]) for row in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)]
    for number, address in enumerate(addresses):
        with peers.connect(port, address) as sock:
            sock.sendall(b"from %d\n" % number)
        assert loader.process.stdout.readline() == b"from %d\n" % number


@pytest.mark.parametrize(("option", "address", "other"), [("-4", "127.0.0.1", "::1"), ("-6", "::1", "127.0.0.1")])
def test_one_family_can_be_asked_for(bench: peers.Bench, option: str, address: str, other: str) -> None:
    loader, port = bench.listening("load", "-o", option, host="", stdout=subprocess.PIPE)
    with pytest.raises(ConnectionRefusedError):
        peers.connect(port, other)
    refused = bench.ringmain("save", option, f"[{other}]:{port}" if ":" in other else f"{other}:{port}")
    assert refused.wait() == 6, refused.stderr
    host = f"[{address}]" if ":" in address else address
    with bench.file(b"by one family").open("rb") as source:
        assert bench.ringmain("save", option, f"{host}:{port}", stdin=source).wait() == 0
    assert loader.process.stdout.read() == b"by one family"
    assert loader.wait() == 0


def test_a_service_name_may_stand_for_the_port(bench: peers.Bench) -> None:
    try:
        number = socket.getservbyname("discard", "tcp")
    except OSError:
        pytest.skip("this system knows no service names")
    saver = bench.ringmain("save", "tcp://127.0.0.1:discard")
    assert saver.wait() == 7, saver.stderr
    loader = bench.ringmain("load", "-v", "192.0.2.77:discard")  # no address of this machine
    assert loader.wait() == 45, loader.stderr
    assert number == 9


def test_a_socket_may_stand_at_either_end_of_the_command(bench: peers.Bench) -> None:
    data = peers.payload(3_000_001)
    ours, theirs = socket.socketpair()
    loader, port = bench.listening("load", "-o", stdout=theirs.fileno())
    back, source = socket.socketpair()
    saver = bench.ringmain("save", f"127.0.0.1:{port}", stdin=source.fileno())
    theirs.close()
    source.close()
    sender = bench.start(["cat"], stdin=subprocess.PIPE, stdout=back.fileno())
    back.close()
    assert sender.process.stdin is not None
    import threading

    thread = threading.Thread(target=lambda: (sender.process.stdin.write(data), sender.process.stdin.close()))
    thread.start()
    with ours:
        assert peers.sha256(peers.read_all(ours)) == peers.sha256(data)
    thread.join()
    assert (loader.wait(), saver.wait()) == (0, 0)
