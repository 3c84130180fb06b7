"""Encrypted keys: where their password comes from, and what is said of a wrong one. Nobody is ever asked for it."""

import contextlib
import os
import pty
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from crews import Crew

SECRET = "correct horse \u00e4"


@pytest.fixture(params=["pkcs8", "traditional"])
def encrypted(request: pytest.FixtureRequest, certificates: Certificates, tmp_path: Path) -> Path:
    """Return the file of a certificate and its key, which openssl has encrypted."""
    form = ["-traditional"] if request.param == "traditional" else []
    return encrypt(certificates.server, tmp_path / "encrypted.pem", *form)


def encrypt(certificate: Path, path: Path, *form: str) -> Path:
    command = [peers.need("openssl"), "pkey", "-in", str(certificate), "-aes256", *form, "-passout", "env:SECRET"]
    key = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "SECRET": SECRET}).stdout
    assert b"ENCRYPTED" in key
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_bytes(key + certificates_in(certificate))
    return new.rename(path)


def certificates_in(path: Path) -> bytes:
    data = path.read_bytes()
    return data[data.index(b"-----BEGIN CERTIFICATE") :]


def password_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "password"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("source", ["file", "environment"])
def test_an_encrypted_key_is_opened_by_its_password(
    bench: peers.Bench, certificates: Certificates, encrypted: Path, tmp_path: Path, source: str
) -> None:
    got, data = tmp_path / "got", peers.payload(100_000)
    options = ["-o", "--tls", "--certfile", encrypted, "-O", got]
    environment = dict(os.environ)
    if source == "file":
        options += ["--key-password-file", password_file(tmp_path, f"{SECRET}\nsecond line\n")]
        environment["RINGMAIN_KEY_PASSWORD"] = "wrong"
    else:
        environment["RINGMAIN_KEY_PASSWORD"] = SECRET
    loader, port = bench.listening("load", *options, env=environment)
    with peers.connect_tls(port, certificates.ca) as sock:
        sock.sendall(data)
        sock.unwrap()
    assert loader.wait() == 0, loader.stderr
    assert peers.sha256(got) == peers.sha256(data)
    assert loader.stderr == f"listening on tcps://127.0.0.1:{port}\n"


@contextlib.contextmanager
def piped(tmp_path: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the name of a pipe that says the password once, and what a process needs to have it."""
    if kind == "named":
        path = tmp_path / "pipe"
        os.mkfifo(path, 0o600)
        writer = threading.Thread(target=path.write_text, args=[f"{SECRET}\n"])
        writer.start()  # and waits for who reads
        yield str(path), {}
        writer.join()
    else:
        ours, theirs = os.pipe()
        os.write(theirs, f"{SECRET}\n".encode())
        os.close(theirs)
        yield f"/dev/fd/{ours}", {"pass_fds": [ours]}
        os.close(ours)


@pytest.mark.parametrize("kind", ["named", "descriptor"])
def test_what_a_pipe_has_said_once_is_used_again(
    bench: peers.Bench, certificates: Certificates, encrypted: Path, tmp_path: Path, kind: str
) -> None:
    with piped(tmp_path, kind) as (path, popen):
        options = ["--tls", "--certfile", encrypted, "--key-password-file", path]
        loader, port = bench.listening("load", *options, start_new_session=True, **popen)
    encrypt(certificates.stranger, encrypted)
    loader.signal(signal.SIGHUP)
    peers.eventually(lambda: serves(port, certificates.stranger_ca), "the new certificate")
    assert "certificates" not in loader.stderr


@pytest.mark.parametrize("kind", ["named", "descriptor"])
def test_each_process_has_what_a_pipe_has_said_and_nobody_else_sees_it(
    bench: peers.Bench, certificates: Certificates, encrypted: Path, tmp_path: Path, kind: str
) -> None:
    with piped(tmp_path, kind) as (path, popen):
        options = ["--tls", "--certfile", encrypted, "--key-password-file", path]
        crew = Crew(bench, *options, start_new_session=True, **popen)
    one = crew.worker_of(crew.files[0])
    assert one is not None
    os.kill(one, signal.SIGKILL)  # another one takes its place
    peers.eventually(lambda: crew.worker_of(crew.files[0]) not in (None, one), "another process")
    with contextlib.ExitStack() as stack:

        def both_serve() -> bool:
            stack.enter_context(peers.connect_tls(crew.port, certificates.ca)).sendall(b"12345\n")
            return all(crew.lines(file) for file in crew.files)

        peers.eventually(both_serve, "lines in each file")
    encrypt(certificates.stranger, encrypted)
    crew.program.signal(signal.SIGHUP)
    peers.eventually(lambda: serves(crew.port, certificates.stranger_ca), "the new certificate")
    for pid in [crew.program.process.pid, *crew.workers()]:
        for what in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{pid}/{what}").read_bytes()
    assert "certificates" not in crew.program.stderr


def serves(port: int, ca: Path) -> bool:
    with contextlib.suppress(ssl.SSLError, ConnectionResetError), peers.connect_tls(port, ca) as sock:
        return sock.version() is not None
    return False


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "key file {key}: it is encrypted; give --key-password-file, or the password in RINGMAIN_KEY_PASSWORD"),
        ("wrong\n", "key file {key}: the password is wrong; give --key-password-file, or the"),
        ("\nfirst\n", "password file {file}: its first line is empty; write the password into its first line"),
        ("x" * 5000, "password file {file}: longer than 1023 bytes; write"),
        ("missing", "password file {file}: no such file or directory; give a readable file"),
    ],
    ids=["none", "wrong", "empty", "long", "missing"],
)
def test_a_password_that_does_not_fit_is_one_line_and_asks_nobody(
    bench: peers.Bench, encrypted: Path, tmp_path: Path, text: str | None, why: str
) -> None:
    file = password_file(tmp_path, text or "")
    if text == "missing":
        file.unlink()
    options = ["--tls", "--certfile", encrypted, *(["--key-password-file", file] if text is not None else [])]
    ours, theirs = pty.openpty()  # a terminal, where a prompt could be
    try:
        loader = bench.ringmain("load", *options, "tcp://127.0.0.1:0", stdin=theirs, start_new_session=True)
        assert loader.wait() == 58
    finally:
        os.close(ours)
        os.close(theirs)
    assert loader.stderr.startswith("ringmain: " + why.format(key=encrypted, file=file))
    assert loader.stderr.count("\n") == 1


def test_each_end_of_a_relay_has_its_own_and_names_it(bench: peers.Bench, encrypted: Path, tmp_path: Path) -> None:
    options = ["--source-certfile", encrypted, "--destination-key-password-file", password_file(tmp_path, SECRET)]
    relay = bench.ringmain("relay", *options, "tcps://127.0.0.1:0", "tcps://127.0.0.1:1")
    assert relay.wait() == 58
    assert "it is encrypted; give --source-key-password-file, or" in relay.stderr
    relay, _ = bench.relaying(
        "tcp://127.0.0.1:1",
        *["--source-certfile", encrypted, "--source-key-password-file", tmp_path / "password"],
        scheme="tcps",
    )
    assert "listening on tcps" in relay.stderr


def test_a_password_that_others_may_read_is_warned_of(bench: peers.Bench, encrypted: Path, tmp_path: Path) -> None:
    file = password_file(tmp_path, SECRET)
    file.chmod(0o644)
    loader, _ = bench.listening("load", "--tls", "--certfile", encrypted, "--key-password-file", file)
    assert f"ringmain: password file {file}: others may read it; run: chmod 600 {file}\n" in loader.stderr


@pytest.mark.parametrize(
    ("mode", "owner", "warned"), [(0o640, 0, False), (0o640, 1, True), (0o604, 0, True), (0o660, 0, True)]
)
def test_a_group_may_read_a_key_of_roots(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, mode: int, owner: int, warned: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root to give files away")
    file = tmp_path / "with a blank.pem"
    shutil.copy(certificates.server, file)
    os.chown(file, owner, 0)
    file.chmod(mode)
    loader, _ = bench.listening("load", "--tls", "--certfile", file)
    line = f"ringmain: key file {file}: others may read it; run: chmod 600 '{file}'\n"
    assert (line in loader.stderr) == warned
    assert ("others may read" in loader.stderr) == warned


def test_a_command_is_not_told_the_password(
    bench: peers.Bench, certificates: Certificates, encrypted: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    environment = {**os.environ, "RINGMAIN_KEY_PASSWORD": SECRET}
    options = ["-o", "--tls", "--certfile", encrypted, "--exec", f"env > {told}; cat > /dev/null"]
    loader, port = bench.listening("load", *options, env=environment)
    with peers.connect_tls(port, certificates.ca) as sock:
        sock.sendall(b"x")
        sock.unwrap()
    assert loader.wait() == 0, loader.stderr
    assert "RINGMAIN_PEER=" in told.read_text()
    assert "KEY_PASSWORD" not in told.read_text()


def test_the_right_password_of_another_certificates_key_is_not_called_wrong(
    bench: peers.Bench, certificates: Certificates, encrypted: Path
) -> None:
    options = ["--tls", "--certfile", certificates.stranger, "--keyfile", encrypted]
    environment = {**os.environ, "RINGMAIN_KEY_PASSWORD": SECRET}
    loader = bench.ringmain("load", *options, "tcp://127.0.0.1:0", env=environment)
    assert loader.wait() == 58
    assert f"it does not belong to the key in {encrypted}; give the pair" in loader.stderr
