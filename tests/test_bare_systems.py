"""Where the system has less than usual: no /proc, no splice, no UTF-8. What is said is right, and bytes get through."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
import sandboxed

SANDBOXED = [sys.executable, sandboxed.__file__]
# In namespaces of its own, so that nobody else is without.
WITHOUT_PROC = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
WITH_AN_ALIAS = [
    *("unshare", "-rnm", "sh", "-c"),
    'mount -t sysfs none /sys && printf "b\\303\\274ro \\342\\206\\222" > /sys/class/net/lo/ifalias && exec "$@"',
    "sh",
]
NO_UTF_8 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def need(command: list[str]) -> None:
    """Skip where a namespace may not be made."""
    peers.need(command[0])
    if subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may make no namespaces")


def receiving(bench: peers.Bench, wrapper: list[str], *arguments: Any, **popen: Any) -> tuple[peers.Program, int]:
    """Start ringmain inside something, listening; return it and its port."""
    port_file = bench.folder / f"port-{len(bench.programs)}"
    command = [*wrapper, *peers.RINGMAIN, "load", *map(str, arguments), "--port-file", str(port_file), "127.0.0.1:0"]
    program = bench.start(command, **popen)

    def port() -> int | None:
        assert program.process.poll() is None, program.stderr
        return int(port_file.read_text()) if port_file.exists() else None

    return program, peers.eventually(port)


@pytest.mark.skipif(platform.machine() not in sandboxed.NUMBERS, reason="other numbers of system calls")
@pytest.mark.parametrize("place", ["file", "pipe"])
def test_a_splice_that_is_not_allowed_is_done_without(bench: peers.Bench, place: str) -> None:
    data = peers.payload(3_000_001)
    where = ["-O", bench.folder / "got"] if place == "file" else []
    loader, port = receiving(bench, SANDBOXED, "-o", *where, stdout=subprocess.PIPE)
    source = bench.file(data)
    inputs = ["-I", str(source)] if place == "file" else []
    saver = bench.start(
        [*SANDBOXED, *peers.RINGMAIN, "save", *inputs, f"127.0.0.1:{port}"], stdin=None if inputs else subprocess.PIPE
    )
    if not inputs:
        saver.process.stdin.write(data)
        saver.process.stdin.close()
        saver.process.stdin = None
    got = loader.process.stdout.read()
    assert (saver.wait(), loader.wait()) == (0, 0), saver.stderr + loader.stderr
    assert peers.sha256(got if place == "pipe" else bench.folder / "got") == peers.sha256(data)
    assert (saver.stderr, loader.stderr.count("\n")) == ("", 1)  # nobody has to care


@pytest.mark.skipif(platform.machine() not in sandboxed.NUMBERS, reason="other numbers of system calls")
def test_a_relay_that_may_not_splice_relays(bench: peers.Bench) -> None:
    data = peers.payload(3_000_001)
    loader, there = bench.listening("load", "-o", stdout=subprocess.PIPE)
    here = peers.free_port()
    relay = bench.start([*SANDBOXED, *peers.RINGMAIN, "relay", "-o", f"127.0.0.1:{here}", f"127.0.0.1:{there}"])
    bench.ringmain("save", "--retry", "forever", "-I", bench.file(data), f"127.0.0.1:{here}")
    assert peers.sha256(loader.process.stdout.read()) == peers.sha256(data)
    assert (relay.wait(), loader.wait()) == (0, 0)


@pytest.mark.skipif(platform.machine() not in sandboxed.NUMBERS, reason="other numbers of system calls")
def test_who_insists_on_the_kernel_path_is_told_why_there_is_none(bench: peers.Bench) -> None:
    loader, port = receiving(bench, SANDBOXED, "--path", "kernel", "-O", bench.folder / "got")
    with peers.connect(port) as sock:
        with contextlib.suppress(ConnectionError):  # it does not wait for a byte
            sock.sendall(b"x")
        assert loader.wait() == 2
    assert "got cannot be spliced: permission denied; leave --path out" in loader.stderr


@pytest.mark.parametrize("kind", ["pipe", "self-signed", "exec"])
def test_without_proc_bytes_get_through(bench: peers.Bench, kind: str) -> None:
    need(WITHOUT_PROC)
    data = peers.payload(3_000_001)
    options = {"pipe": [], "self-signed": ["--tls", "--self-signed"], "exec": ["--exec", "cat"]}[kind]
    loader, port = receiving(bench, WITHOUT_PROC, "-o", *options, stdout=subprocess.PIPE)
    tls = ["--tls", "--insecure"] if kind == "self-signed" else []
    saver = bench.ringmain("save", *tls, "-I", bench.file(data), f"127.0.0.1:{port}")
    assert peers.sha256(loader.process.stdout.read()) == peers.sha256(data)
    assert (saver.wait(), loader.wait()) == (0, 0), saver.stderr + loader.stderr


def test_without_proc_and_a_folder_for_it_a_certificate_of_our_own_is_refused_in_one_line(bench: peers.Bench) -> None:
    nowhere = "mount -t tmpfs none /proc; mount -t tmpfs -o ro none /tmp; mount -t tmpfs -o ro none /var/tmp; cd /tmp"
    wrapper = ["unshare", "-rm", "sh", "-ec", f'{nowhere}; exec "$@"', "sh"]
    need(wrapper)
    command = [*wrapper, *peers.RINGMAIN, "load", "--tls", "--self-signed", "127.0.0.1:0"]
    loader = bench.start(command, env={**os.environ, "TMPDIR": "/nowhere"})
    assert loader.wait() == 58
    why = "no such file or directory; it needs /proc, or a folder for temporary files"
    assert loader.stderr == f"ringmain: --self-signed: {why}\n"


def test_without_proc_a_process_that_dies_is_replaced_and_cuts_its_file(bench: peers.Bench, tmp_path: Path) -> None:
    need(WITHOUT_PROC)
    output = tmp_path / "got-{process}"
    options = ["--processes", 2, "--max-connections", 2, "--output", output]
    loader, port = receiving(bench, WITHOUT_PROC, *options)
    with peers.connect(port) as sock:
        sock.sendall(b"whole\n")
        first = peers.eventually(lambda: next((it for it in tmp_path.glob("got-*") if it.read_bytes()), None))
        first.write_bytes(b"whole\nhal")  # as one that is killed within a write leaves it
        children = Path(f"/proc/{loader.process.pid}/task/{loader.process.pid}/children").read_text().split()
        number = int(first.name[-1])
        os.kill(int(children[number - 1]), signal.SIGKILL)
        loader.says("was ended by SIGKILL")
    loader.says("dropped 3 bytes of a record")
    with peers.connect(port) as one, peers.connect(port) as other:  # each process has one
        for sock in (one, other):
            sock.sendall(b"more\n")
        peers.eventually(lambda: first.read_bytes() == b"whole\nmore\n", lambda: str(first.read_bytes()))
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


def test_without_proc_interfaces_cannot_be_listed_and_that_is_said() -> None:
    need(WITHOUT_PROC)
    result = subprocess.run([*WITHOUT_PROC, *peers.RINGMAIN, "nics"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("ringmain: list the interfaces: /proc/net/dev: no such file or directory; ")


@pytest.mark.parametrize("environment", [NO_UTF_8, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}], ids=str)
def test_a_name_that_the_locale_has_no_letters_for_is_shown_somehow(environment: dict[str, str]) -> None:
    need(WITH_AN_ALIAS)
    command = [*WITH_AN_ALIAS, *peers.RINGMAIN, "nics"]
    result = subprocess.run(command, capture_output=True, env={**os.environ, **environment})
    assert (result.returncode, result.stderr) == (0, b"")
    shown = result.stdout.splitlines()[1].decode("latin-1")
    assert " b" in shown
    assert "ro " in shown


def test_all_of_our_own_words_are_ascii() -> None:
    import ringmain

    for path in Path(ringmain.__file__).parent.rglob("*.py"):
        assert path.read_text(encoding="utf-8").isascii(), path


def test_no_file_is_read_as_the_locale_has_it() -> None:
    code = "from ringmain.bench.result import machine; machine(); import ringmain; ringmain.nics()"
    flags = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    subprocess.run([sys.executable, *flags, "-c", code], check=True)
