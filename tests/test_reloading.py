"""Certificates are read again: at SIGHUP, by --reload-certificates or from Python; a bad one leaves the old in use."""

import asyncio
import contextlib
import hashlib
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import peers
import pytest
import trustme
from crews import Crew

import ringmain
from ringmain.errors import CertificateError
from ringmain.net.renewable import Renewable

SERVICE: dict[str, Any] = {"start_new_session": True}
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Files:
    """A folder with an authority, and with one certificate of it after the other in one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.server = folder / "server.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.change()

    def issue(self, path: Path, authority: trustme.CA | None = None) -> Path:
        """Write a new certificate with its key; in place of another at once."""
        pem = (authority or self.authority).issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem
        return replace(path, pem.bytes())

    def change(self) -> None:
        """Put another certificate in the server's file."""
        self.issue(self.server)

    def serial(self, port: int) -> str:
        """Return the serial number of the certificate that a new client is shown."""
        with peers.connect_tls(port, self.ca) as sock:
            return serial_of(sock)

    def shown(self, path: Path | None = None) -> str:
        """Return that of a file."""
        command = ["openssl", "x509", "-noout", "-serial", "-in", str(path or self.server)]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip().partition("=")[2]


def replace(path: Path, data: bytes) -> Path:
    """Let a file with this take the place of another one."""
    new = path.with_name(f"{path.name}.new")
    new.touch(mode=0o600)
    new.write_bytes(data)
    return new.rename(path)


def serial_of(sock: ssl.SSLSocket) -> str:
    certificate = sock.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Files(folder)


def listening(bench: peers.Bench, verb: str, files: Files, *options: Any) -> tuple[peers.Program, int]:
    """Start a verb that serves TLS clients, several at once."""
    if verb == "relay":
        sink = peers.free_port()
        bench.ringmain("load", "--max-connections", 9, f"127.0.0.1:{sink}")
        peers.wait_for_port(sink)
        options = ("--source-certfile", files.server, *options, "--max-connections", 9)
        return bench._listening("relay", *options, "tcps://127.0.0.1:0", f"127.0.0.1:{sink}", **SERVICE)
    own = ["--listen", "-I", bench.file(b"hello")] if verb == "save" else ["-O", bench.folder / "log"]
    options = ("--tls", "--certfile", files.server, *own, *options, "--max-connections", 9)
    return bench.listening(verb, *options, **SERVICE)


def changes_to(files: Files, port: int, serial: str) -> None:
    peers.eventually(lambda: files.serial(port) == serial, "the new certificate")


@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_sighup_shows_new_clients_the_new_certificate(bench: peers.Bench, files: Files, verb: str) -> None:
    program, port = listening(bench, verb, files)
    before = files.shown()
    with peers.connect_tls(port, files.ca) as early:
        assert serial_of(early) == before
        files.change()
        assert files.serial(port) == before != files.shown()  # nobody has said so yet
        program.signal(signal.SIGHUP)
        changes_to(files, port, files.shown())
        if verb == "load":  # who was there stays, and is served to the end
            early.sendall(b"whole line\n")
            early.unwrap()
            peers.eventually(lambda: (bench.folder / "log").read_bytes() == b"whole line\n", "its line")
    assert "certificate" not in program.stderr
    program.signal(signal.SIGTERM)
    assert program.wait() == 143


def test_openssl_sees_it_too(bench: peers.Bench, files: Files) -> None:
    openssl = peers.need("openssl")
    program, port = listening(bench, "load", files)
    files.change()
    program.signal(signal.SIGHUP)

    def serial() -> str:
        command = [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-showcerts"]
        client = subprocess.run(command, input=b"", capture_output=True, check=True, timeout=peers.TIMEOUT)
        (files.folder / "seen.pem").write_bytes(client.stdout)
        return files.shown(files.folder / "seen.pem")

    peers.eventually(lambda: serial() == files.shown(), "the new certificate")


def half(path: Path, _: Files) -> None:
    replace(path, path.read_bytes()[:700])


def key_of_another(path: Path, files: Files) -> None:
    other = files.authority.issue_cert("localhost")
    replace(path, other.private_key_pem.bytes() + path.read_bytes()[path.read_bytes().index(b"-----BEGIN CERT") :])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path, _: replace(path, b"garbage"), "no PEM certificate in it"),
        (lambda path, _: path.unlink(), "no such file or directory"),
        (half, ""),
        (key_of_another, "it does not belong to the key in"),
    ],
    ids=["garbage", "gone", "half", "other key"],
)
@pytest.mark.parametrize("how", ["signal", "looking"])
def test_a_bad_certificate_is_one_warning_and_the_old_one_stays(
    bench: peers.Bench, files: Files, spoil: Any, why: str, how: str
) -> None:
    options = [] if how == "signal" else ["--reload-certificates", "50ms"]
    program, port = listening(bench, "load", files, *options)
    before = files.shown()
    spoil(files.server, files)
    if how == "signal":
        program.signal(signal.SIGHUP)
    program.says("ringmain: the certificates stay as they were: ")
    assert why in program.stderr
    assert files.serial(port) == before
    files.change()
    if how == "signal":
        program.signal(signal.SIGHUP)
    changes_to(files, port, files.shown())
    assert program.stderr.count("stay as they were") == 1
    assert "Traceback" not in program.stderr


@pytest.mark.parametrize("kind", ["kubernetes", "certbot"])
@pytest.mark.parametrize("verb", ["load", "save", "relay"])
def test_swapped_symlinks_are_found_by_looking(bench: peers.Bench, files: Files, verb: str, kind: str) -> None:
    real = files.server.rename(files.folder / "first.pem")
    for number in (1, 2):
        version = files.folder / f"..{number}"
        version.mkdir()
        files.issue(version / "tls.pem") if number == 2 else real.rename(version / "tls.pem")
    if kind == "kubernetes":  # a link to a link to a folder, which is swapped
        swapped, to = files.folder / "..data", ["..1", "..2"]
        files.server.symlink_to("..data/tls.pem")
    else:
        swapped, to = files.server, ["..1/tls.pem", "..2/tls.pem"]
    swapped.symlink_to(to[0])
    program, port = listening(bench, verb, files, "--reload-certificates", "50ms")
    before = files.shown()
    assert files.serial(port) == before
    new = files.folder / "new"
    new.symlink_to(to[1])
    new.replace(swapped)
    assert files.shown() != before
    changes_to(files, port, files.shown())
    assert "certificate" not in program.stderr


def test_authorities_are_read_again_and_those_that_were_taken_out_are_gone(bench: peers.Bench, files: Files) -> None:
    other = trustme.CA()
    clients = files.folder / "clients.pem"
    replace(clients, files.authority.cert_pem.bytes())
    certificates = {"ours": files.issue(files.folder / "ours"), "theirs": files.issue(files.folder / "theirs", other)}
    program, port = listening(bench, "load", files, "--client-ca", clients)

    def may_come(who: str) -> bool:
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(certificates[who])
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones tell a client after its handshake
        try:
            with context.wrap_socket(peers.connect(port), server_hostname="localhost") as sock:
                sock.unwrap()
        except OSError:
            return False
        return True

    assert may_come("ours")
    assert not may_come("theirs")
    replace(clients, other.cert_pem.bytes())
    program.signal(signal.SIGHUP)
    peers.eventually(lambda: may_come("theirs"), "the new authority")
    assert not may_come("ours")


def test_a_relay_trusts_its_destination_by_the_new_file(bench: peers.Bench, files: Files) -> None:
    _, there = listening(bench, "load", files)
    trusted = files.folder / "trusted.pem"
    replace(trusted, trustme.CA().cert_pem.bytes())
    options = ["--destination-cafile", trusted, "--reload-certificates", "50ms"]
    relay, port = bench._listening("relay", *options, "127.0.0.1:0", f"tcps://127.0.0.1:{there}", **SERVICE)
    assert peers.is_reset(port, b"distrusted\n")
    relay.says("unable to get local issuer certificate")
    replace(trusted, files.authority.cert_pem.bytes())

    def gets_through() -> bool:
        with contextlib.suppress(ConnectionError), peers.connect(port) as sock:
            sock.sendall(b"trusted\n")
        return (bench.folder / "log").read_bytes().startswith(b"trusted\n")

    peers.eventually(gets_through, "a line by the relay")
    assert b"distrusted" not in (bench.folder / "log").read_bytes()


def test_all_processes_show_the_new_one_and_a_bad_one_is_one_warning(bench: peers.Bench, files: Files) -> None:
    crew = Crew(bench, "--tls", "--certfile", files.server, **SERVICE)
    before = files.shown()

    def serials() -> set[str]:
        """Return what two clients at once are shown, each by a process of its own."""
        with peers.connect_tls(crew.port, files.ca) as one, peers.connect_tls(crew.port, files.ca) as other:
            return {serial_of(one), serial_of(other)}

    assert serials() == {before}
    good = files.server.read_bytes()
    replace(files.server, b"garbage")
    crew.program.signal(signal.SIGHUP)
    crew.program.says("the certificates stay as they were")
    assert serials() == {before}
    replace(files.server, good)
    files.change()
    crew.program.signal(signal.SIGHUP)
    peers.eventually(lambda: serials() == {files.shown()}, "the new one")
    assert crew.program.stderr.count("stay as they were") == 1
    crew.program.signal(signal.SIGTERM)
    assert crew.program.wait() == 143


def test_no_byte_of_a_stream_is_lost_however_often(bench: peers.Bench, files: Files) -> None:
    program, port = listening(bench, "load", files, "--reload-certificates", "20ms", "--max-record", "2M")
    digest, line = hashlib.sha256(), peers.payload(500_000).hex().encode() + b"\n"
    with peers.connect_tls(port, files.ca) as sock:
        for _ in range(20):
            files.change()
            program.signal(signal.SIGHUP)
            sock.sendall(line)
            digest.update(line)
        changes_to(files, port, files.shown())
        sock.unwrap()
    log = bench.folder / "log"
    peers.eventually(lambda: log.stat().st_size == 20 * len(line), "all lines")
    assert peers.sha256(log) == digest.hexdigest()
    assert "certificate" not in program.stderr


@pytest.mark.parametrize("changes", [True, False], ids=["changes", "stays"])
def test_files_that_change_while_they_are_read_are_read_once_more(files: Files, changes: bool) -> None:
    """As where a key has been swapped already, and its certificate is a moment later."""
    made: list[bool] = []

    def make(again: bool) -> ssl.SSLContext:
        made.append(again)
        if len(made) == 2:
            if changes:
                files.change()
            raise CertificateError("certificate", "it does not belong to the key")
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    context = Renewable.made_by(make, [str(files.server)])
    with contextlib.nullcontext() if changes else pytest.raises(CertificateError):
        context.renew()
    assert made == ([False, True, True] if changes else [False, True])
    assert not context.has_changed  # nothing is looked for again


def test_a_self_signed_certificate_stays(bench: peers.Bench) -> None:
    program, port = bench.listening("load", "--tls", "--self-signed", **SERVICE)

    def shown() -> bytes | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(peers.connect(port)) as sock:
            return sock.getpeercert(binary_form=True)

    before = shown()
    program.hears(signal.SIGHUP)
    program.signal(signal.SIGUSR1)
    program.says("buffer")
    assert shown() == before
    assert program.stderr.count("fingerprint") == 1


@pytest.mark.parametrize("verb", ["load", "relay", "save"])
@pytest.mark.parametrize("tls", [[], ["--self-signed"]], ids=["plain", "self-signed"])
def test_looking_for_nothing_is_refused(bench: peers.Bench, verb: str, tls: list[str]) -> None:
    scheme = "tcps" if tls else "tcp"
    ends = [f"{scheme}://127.0.0.1:0", "127.0.0.1:1"] if verb == "relay" else [f"{scheme}://127.0.0.1:0"]
    options = [option.replace("--", "--source-") for option in tls] if verb == "relay" else tls
    listen = ["--listen"] if verb == "save" else []
    program = bench.ringmain(verb, *listen, *options, "--reload-certificates", "1m", *ends)
    assert program.wait() == 2
    line = "ringmain: --reload-certificates: no certificate, key or CA file is used; leave it out\n"
    assert program.stderr == line


@pytest.mark.parametrize("verb", ["load", "save", "serve", "relay"])
def test_python_may_say_so_and_hears_what_is_wrong(run: Run, files: Files, verb: str) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            served = await _entered(stack, verb, files)
            files.change()
            served.reload_certificates()
            new, good = files.shown(), files.server.read_bytes()
            replace(files.server, b"garbage")
            with pytest.raises(CertificateError, match="no PEM certificate in it"):
                served.reload_certificates()
            replace(files.server, good)
            assert await asyncio.to_thread(files.serial, served.port) == new

    run(main())


async def _entered(stack: contextlib.AsyncExitStack, verb: str, files: Files) -> Any:
    """Return what serves one client, until the stack is left."""
    options: dict[str, Any] = {"tls": True, "certfile": str(files.server)}
    if verb == "serve":
        return await stack.enter_async_context(ringmain.serve("127.0.0.1:0", _ignore, **options))
    if verb == "relay":
        relay = ringmain.relay(
            "tcps://127.0.0.1:0", "127.0.0.1:1", source_tls=ringmain.TlsSettings(certfile=str(files.server))
        )
        served = await stack.enter_async_context(relay)
        waiting = asyncio.ensure_future(served.serve())
    elif verb == "load":
        served = await stack.enter_async_context(ringmain.load("127.0.0.1:0", **options))
        waiting = asyncio.ensure_future(anext(served))
    else:
        served = await stack.enter_async_context(ringmain.save("127.0.0.1:0", listen=True, **options))
        waiting = asyncio.ensure_future(served.wait_for_peer())
    stack.push_async_callback(asyncio.wait, [waiting])
    stack.callback(waiting.cancel)
    return served


async def _ignore(connection: ringmain.Connection) -> None:
    async for _ in connection:
        pass


def test_a_file_of_the_same_size_whose_time_was_set_back_has_changed(files: Files) -> None:
    """As copying with its times does it, in place."""
    context = Renewable.made_by(lambda _: ssl.create_default_context(), [str(files.server)])
    before = files.server.stat()
    assert not context.has_changed
    data = files.server.read_bytes()
    time.sleep(0.02)  # the kernel's clock for files ticks every few milliseconds
    files.server.write_bytes(data[::-1])
    os.utime(files.server, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.server.stat().st_mtime_ns == before.st_mtime_ns
    assert context.has_changed
    context.renew()
    assert not context.has_changed
