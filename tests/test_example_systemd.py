"""The example units: systemd finds nothing wrong with them, and what they start does what they say."""

import configparser
import re
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import peers
import pytest
from conftest import Certificates

EXAMPLE = Path(__file__).parent.parent / "examples" / "systemd"
if not EXAMPLE.exists():
    pytest.skip("the examples are not beside these tests", allow_module_level=True)
LINES = [b"%d %s\n" % (number, bytes([97 + number % 26]) * (number % 300)) for number in range(20_000)]


def unit(kind: str) -> configparser.SectionProxy:
    """Return the section of a unit that is named like its kind; of what stands there twice the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(EXAMPLE / f"events.{kind}")
    return parser[kind.capitalize()]


def test_systemd_finds_nothing_wrong_with_the_units(bench: peers.Bench) -> None:
    analyze = peers.need_systemd("systemd-analyze")
    ringmain = bench.folder / "ringmain"
    ringmain.write_text("#!/bin/sh\n")
    ringmain.chmod(0o755)
    service = (EXAMPLE / "events.service").read_text().replace("/usr/local/bin/ringmain", str(ringmain))
    bench.file(service.encode(), "events.service")
    bench.file((EXAMPLE / "events.socket").read_bytes(), "events.socket")
    (bench.folder / "events.service.d").mkdir()
    bench.file((EXAMPLE / "tls.conf").read_bytes(), "events.service.d/tls.conf")
    verify = bench.start([analyze, "verify", str(bench.folder / "events.socket"), str(bench.folder / "events.service")])
    assert verify.wait() == 0
    assert verify.stderr == ""


def test_what_the_service_starts_appends_whole_lines_of_all_clients(bench: peers.Bench, tmp_path: Path) -> None:
    activate, path, output = peers.need_systemd("systemd-socket-activate"), tmp_path / "socket", tmp_path / "events"
    output.write_bytes(b"there before\n")
    _, *arguments = unit("service")["ExecStart"].split()
    name = unit("socket")["FileDescriptorName"]
    environment_file = (EXAMPLE / "events.env").read_text().replace("/var/log/events/", f"{tmp_path}/")
    given = [line for line in environment_file.splitlines() if not line.startswith("#")]
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(f"{tmp_path}/notify")
    notify.settimeout(peers.TIMEOUT)
    given += [f"NOTIFY_SOCKET={tmp_path}/notify"]

    def run(port: int) -> None:
        places = ["-l", f"127.0.0.1:{port}", "-l", str(path), f"--fdname={name}:{name}"]
        environment = [word for line in given for word in ("-E", line)]
        before = output.stat().st_size
        with output.open("ab") as file:
            service = bench.start([activate, *places, *environment, *peers.RINGMAIN, *arguments], stdout=file)
        peers.wait_for_port(port)
        with peers.connect(port) as one, peers.dial_unix(path) as other:
            for at in range(0, len(LINES), 1000):
                one.sendall(b"".join(LINES[at : at + 1000]))
                other.sendall(b"".join(LINES[at : at + 1000]))
        while notify.recv(4096) != b"READY=1":
            pass
        peers.eventually(lambda: output.stat().st_size == before + 2 * sum(map(len, LINES)))
        service.signal(signal.SIGTERM)
        assert service.wait() == int(unit("service")["SuccessExitStatus"])
        path.unlink()

    with notify:
        run(peers.free_port())
        run(peers.free_port())
    lines = output.read_bytes().splitlines(keepends=True)
    assert lines[0] == b"there before\n"
    assert sorted(lines[1:]) == sorted(4 * LINES)
    assert len((tmp_path / "connections.ndjson").read_bytes().splitlines()) == 4


def test_a_certificate_is_renewed_while_the_service_runs(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    """By `systemctl reload`, which does what ExecReload says."""
    pem, output = tmp_path / "events.pem", tmp_path / "events"
    shutil.copy(certificates.server, pem)
    settings = (EXAMPLE / "tls.conf").read_text().replace("/etc/ssl/events/events.pem", str(pem))
    given = dict(line.split("=", 1) for line in re.findall(r"^Environment=(.*)$", settings, re.MULTILINE))
    assert given.pop("RINGMAIN_LOAD_RELOAD_CERTIFICATES") == "1m"  # nobody waits for that here
    _, *arguments = unit("service")["ExecStart"].split()
    activate = peers.need_systemd("systemd-socket-activate")
    port = peers.free_port()
    environment = [word for name, value in given.items() for word in ("-E", f"{name}={value}")]
    command = ["-l", f"127.0.0.1:{port}", f"--fdname={unit('socket')['FileDescriptorName']}", *environment]
    with output.open("ab") as file:
        options = ["--max-connections", "9"]
        service = bench.start([activate, *command, *peers.RINGMAIN, *arguments, *options], stdout=file)
    peers.wait_for_port(port)
    with peers.connect_tls(port, certificates.ca) as early:
        early.sendall(b"before\n")
        peers.eventually(lambda: output.read_bytes() == b"before\n")
        with pytest.raises(ssl.SSLCertVerificationError):
            peers.connect_tls(port, certificates.stranger_ca)
        shutil.copy(certificates.stranger, tmp_path / "new.pem")
        (tmp_path / "new.pem").replace(pem)
        reload = unit("service")["ExecReload"].replace("$MAINPID", str(service.process.pid))
        assert subprocess.run(["sh", "-c", reload], check=False).returncode == 0
        peers.eventually(lambda: is_trusted(port, certificates.stranger_ca))
        early.sendall(b"behind\n")
        early.unwrap()
    peers.eventually(lambda: output.read_bytes() == b"before\nbehind\n")


def is_trusted(port: int, ca: Path) -> bool:
    try:
        peers.connect_tls(port, ca).close()
    except ssl.SSLCertVerificationError:
        return False
    return True
