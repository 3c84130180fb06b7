"""The command line's manners: what goes where, what is left behind, what is imported."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from conftest import Certificates

from ringmain.cli.values import DURATION, Linger


def test_the_documented_tls_example_works_as_written(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    peers.need("openssl")
    (tmp_path / "key_and_cert.pem").write_bytes(certificates.server.read_bytes())
    (tmp_path / "key_and_cert.pem").chmod(0o600)
    port = peers.free_port()
    example = f"load tcp://127.0.0.1:{port} --tls --certfile key_and_cert.pem --keyfile key_and_cert.pem -k"
    loader = bench.ringmain(*example.split(), cwd=tmp_path, stdout=subprocess.PIPE)
    peers.wait_for_port(port)
    client = ["openssl", "s_client", "-quiet", "-no_ign_eof", "-connect", f"127.0.0.1:{port}"]
    for text in (b"one\n", b"two\n"):
        subprocess.run(client, input=text, stderr=subprocess.DEVNULL, check=True)
        assert loader.process.stdout is not None
        assert loader.process.stdout.readline() == text
    assert loader.stderr == ""


def test_certificates_without_tls_are_ignored_with_one_warning(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-o", "--certfile", "missing.pem", "--keyfile", "missing.pem", "--insecure")
    peers.connect(port).close()
    assert loader.wait() == 0
    assert loader.stderr.count("ringmain: ") == 1
    assert "--certfile, --keyfile, --insecure: ignored without --tls" in loader.stderr


def test_what_only_the_other_end_of_tls_needs_is_ignored_with_one_warning(bench: peers.Bench) -> None:
    loader, _ = bench.listening("load", "--tls", "--self-signed", "--cafile", "ca.pem", "--insecure")
    loader.says("--cafile, --insecure: ignored by a listener, which verifies clients with --client-ca")
    saver = bench.ringmain("save", "--tls", "--client-ca", "ca.pem", "--self-signed", f"127.0.0.1:{peers.free_port()}")
    saver.says("--client-ca, --self-signed: ignored when connecting")
    assert saver.wait() == 7


def test_port_0_is_reported_and_the_port_file_goes_with_the_process(bench: peers.Bench, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    loader = bench.ringmain("load", "-o", "--port-file", port_file, "tcp://127.0.0.1:0")
    peers.eventually(port_file.exists)
    port = int(port_file.read_text())
    assert loader.stderr == f"listening on tcp://127.0.0.1:{port}\n"
    peers.connect(port).close()
    assert loader.wait() == 0
    assert not port_file.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_port_file_is_replaced_whole_and_removed_however_the_process_ends(
    bench: peers.Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "ports"
    folder.mkdir()
    port_file = folder / "port"
    for signals in (0, 1, 2):
        port_file.write_text("the old one")
        with port_file.open() as old:
            loader = bench.ringmain(
                "load", "-o", "--path", "block", "--port-file", port_file, "127.0.0.1:0", stdout=subprocess.PIPE
            )
            port = int(peers.eventually(lambda: port_file.read_text().removeprefix("the old one"), "the port"))
            assert old.read() == "the old one"  # whoever reads meanwhile sees one or the other, never a part
        with peers.connect(port) as sock:
            if signals == 2:  # the first one waits for what is under way
                sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    while True:
                        sock.sendall(b"x" * (1 << 20))
            for _ in range(signals):
                loader.signal(signal.SIGTERM)
                wait_for_delivery(loader, signal.SIGTERM)
        assert loader.wait() == (143 if signals else 0)
        assert list(folder.iterdir()) == []


def wait_for_delivery(program: peers.Program, number: int) -> None:
    """Wait until a signal is no longer pending: a second one would be merged into it."""

    def delivered() -> bool:
        status = Path(f"/proc/{program.process.pid}/status").read_text().splitlines()
        pending = [line.split()[1] for line in status if line.startswith(("SigPnd", "ShdPnd"))]
        return not any(int(mask, 16) >> (number - 1) & 1 for mask in pending)

    peers.eventually(delivered, "the signal's arrival")


def test_a_port_file_that_cannot_be_written_is_one_line(bench: peers.Bench, tmp_path: Path) -> None:
    for option in ("--port-file", "--stats-file"):
        loader = bench.ringmain("load", option, tmp_path / "none" / "file", "127.0.0.1:0")
        assert loader.wait() == 23
        assert f"choose another {option}" in loader.stderr.splitlines()[-1]
        assert "Traceback" not in loader.stderr


def test_the_stats_file_gets_one_object_a_connection(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path
) -> None:
    stats = tmp_path / "stats"
    for verb in ("load", "save"):
        options = ["--tls", "--certfile", certificates.server, "--stats-file", stats, "-o"]
        program, port = bench.listening(verb, *options, stdin=subprocess.PIPE)
        with peers.connect_tls(port, certificates.ca) as sock:
            if verb == "load":
                sock.sendall(b"x" * 100_000)
                sock.unwrap()
            else:
                program.process.stdin.write(b"x" * 100_000)
                program.process.stdin.close()
                program.process.stdin = None
                assert len(peers.read_all(sock)) == 100_000
        assert program.wait() == 0
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", row["peer"])
        assert (row["tls"], row["bytes"], row["verdict"]) == ("TLSv1.3", 100_000, "ended")
        assert row["cipher"].startswith("TLS_")
        assert row["seconds"] > 0
        assert row["reads"] > 0
        assert row["stalls"] >= 0
    assert rows[0]["blocks"] > 0


def test_quiet_and_verbose_say_less_and_more(bench: peers.Bench) -> None:
    quiet, port = bench.listening("load", "-q", "--idle-timeout", "3s")
    with peers.connect(port) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b""
    verbose, port = bench.listening("load", "-v", "-o")
    peers.connect(port).close()
    assert verbose.wait() == 0
    assert re.search(r"127\.0\.0\.1:\d+: connected\n.*: ended after 0 bytes\n", verbose.stderr)
    assert quiet.stderr.count("\n") == 1  # the port that 0 stood for is always reported


def test_a_terminal_sees_progress_and_a_pipe_does_not(bench: peers.Bench) -> None:
    main, side = pty.openpty()
    loader, port = bench.listening("load", stdout=subprocess.PIPE)
    shown = subprocess.Popen(
        [*peers.RINGMAIN, "load", "-o", "127.0.0.1:0"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=side
    )
    os.close(side)
    seen = b""
    while b"listening on" not in seen or b"\n" not in seen:
        seen += os.read(main, 4096)
    other = int(re.search(rb":(\d+)\r", seen)[1])
    with peers.connect(port) as silent, peers.connect(other) as sock:
        silent.sendall(b"x" * 5000)
        sock.sendall(b"x" * 5000)
        line = rb"\r4\.88 KiB  \d:\d\d:\d\d  in \S+ \S+/s  out \S+ \S+/s  buffer \d+%"
        while not re.search(line, seen):  # those before may be of fewer bytes
            seen += os.read(main, 4096)
    assert shown.wait(peers.TIMEOUT) == 0
    assert shown.stdout is not None
    shown.stdout.close()
    os.close(main)
    assert loader.stderr == f"listening on tcp://127.0.0.1:{port}\n"


def test_progress_can_be_asked_for_in_a_pipe_and_switched_off_on_a_terminal(bench: peers.Bench) -> None:
    asked, port = bench.listening("load", "--progress")
    with peers.connect(port) as sock:
        sock.sendall(b"x" * 5000)
        asked.says("\n4.88 KiB  0:00:0")
    main, side = pty.openpty()
    command = [*peers.RINGMAIN, "load", "-o", "--no-progress", "127.0.0.1:0"]
    silent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, stderr=side)
    os.close(side)
    seen = b""
    while not seen.endswith(b"\n"):
        seen += os.read(main, 4096)
    with peers.connect(int(re.search(rb":(\d+)\r", seen)[1])) as sock:
        sock.sendall(b"x")
        asked.says("  0:00:01  ")  # by the clock of the other one, a progress line would have come by now
    assert silent.wait(peers.TIMEOUT) == 0
    with pytest.raises(OSError, match="Input/output"):  # the terminal is closed, with nothing left to read
        os.read(main, 4096)
    os.close(main)


@pytest.mark.parametrize("verb", [[], ["load"], ["save"]], ids=["group", "load", "save"])
def test_help_shows_examples_line_by_line(verb: list[str]) -> None:
    text = subprocess.run([*peers.RINGMAIN, *verb, "--help"], capture_output=True, text=True, check=True).stdout
    assert "\\b" not in text
    assert sum(line.startswith("  ringmain ") for line in text.splitlines()) >= 2


def test_the_installed_command_is_the_module() -> None:
    command = Path(sys.executable).with_name("ringmain")
    if not command.exists():
        pytest.skip("the entry point is installed elsewhere")
    for program in ([str(command)], peers.RINGMAIN):
        text = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout
        assert re.fullmatch(r"ringmain \d+\.\d+\.\d+\n", text)


def test_environment_variables_mirror_the_options(bench: peers.Bench, tmp_path: Path) -> None:
    environment = os.environ | {"RINGMAIN_LOAD_LISTEN_ONCE": "1", "RINGMAIN_LOAD_OUTPUT": str(tmp_path / "got")}
    loader, port = bench.listening("load", env=environment)
    with peers.connect(port) as sock:
        sock.sendall(b"by environment")
    assert loader.wait() == 0
    assert (tmp_path / "got").read_bytes() == b"by environment"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_knows_verbs_and_options(shell: str) -> None:
    source = subprocess.run(
        peers.RINGMAIN, env=os.environ | {"_RINGMAIN_COMPLETE": f"{shell}_source"}, capture_output=True, text=True
    )
    assert "ringmain" in source.stdout
    words = {"COMP_WORDS": "ringmain load --handshake", "COMP_CWORD": "2", "_RINGMAIN_COMPLETE": f"{shell}_complete"}
    words["COMP_CWORD"] = "--handshake" if shell == "fish" else "2"
    answer = subprocess.run(peers.RINGMAIN, env=os.environ | words, capture_output=True, text=True)
    assert "--handshake-timeout" in answer.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["load", "--version"], ["--help"], ["save", "--help"]])
def test_version_and_help_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nsys.argv[0] = 'ringmain'\n"
        "from ringmain.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'asyncio', 'ssl', 'uvloop', 'psutil', 'cryptography', 'rich', 'ctypes'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.stdout.endswith("[]\n"), result
    assert result.stdout.startswith(("ringmain 0.", "Usage: ringmain"))


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [
        (["--version"], []),
        (["bench", "--help"], ["bench"]),
        (["load", "--help"], ["load"]),
        (["relay", "--help"], ["load", "relay", "save"]),  # what it does where one end is a file
        (["save", "--help"], ["save"]),
    ],
)
def test_no_command_imports_what_it_has_no_use_for(arguments: list[str], imported: list[str]) -> None:
    code = (
        "import sys\nsys.argv[0] = 'ringmain'\n"
        "from ringmain.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([it for it in ('bench', 'load', 'nics', 'relay', 'save') if f'ringmain.cli.{it}' in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == str(imported)


def test_a_run_collects_garbage_as_any_other_program() -> None:
    code = (
        "import gc, os, sys\nsys.argv = ['ringmain', 'load', 'tcp://127.0.0.1:0']\n"
        "import ringmain.net.gate as gate\nlisten = gate.listen\n"
        "async def told(*given):\n    os.write(1, str(gc.isenabled()).encode())\n    os._exit(0)\n"
        "gate.listen = told\n"
        "from ringmain.__main__ import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True", result.stderr


def test_all_commands_are_listed_and_others_are_refused(bench: peers.Bench) -> None:
    shown = subprocess.run([*peers.RINGMAIN, "--help"], capture_output=True, text=True, check=True).stdout
    commands = [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()]
    assert commands == ["bench", "load", "nics", "relay", "save"]
    other = subprocess.run([*peers.RINGMAIN, "laod"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "laod" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_a_plain_run_imports_neither_psutil_nor_cryptography(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-o", stdout=subprocess.PIPE)
    with peers.connect(port) as sock:
        sock.sendall(b"x")
        assert loader.process.stdout is not None
        assert loader.process.stdout.read(1) == b"x"
        maps = Path(f"/proc/{loader.process.pid}/maps").read_text()
    assert "psutil" not in maps
    assert "cryptography" not in maps
    assert loader.wait() == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("5s", 5), ("2m", 120), ("1h", 3600), ("off", None), ("1.5", 1.5)]
)
def test_durations(text: str, seconds: float | None) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("option", "words"),
    [("--max-record", "is not a size"), ("--receive-buffer", "is not a size"), ("--retry", "count")],
)
@pytest.mark.parametrize("digits", [24, 5000])
def test_a_number_that_nothing_can_hold_is_one_line(bench: peers.Bench, option: str, words: str, digits: int) -> None:
    program = bench.ringmain("load", option, digits * "1", "tcp://127.0.0.1:0")
    assert program.process.wait(peers.TIMEOUT) == 2
    assert words in program.stderr
    assert program.stderr.count("\n") == 1


def test_keys_readable_by_others_are_warned_of(bench: peers.Bench, certificates: Certificates, tmp_path: Path) -> None:
    key = tmp_path / "open.pem"
    key.write_bytes(certificates.server.read_bytes())
    key.chmod(0o644)
    loader, _ = bench.listening("load", "--tls", "--certfile", key)
    assert f"chmod 600 {key}" in loader.stderr


def test_a_self_signed_certificate_prints_its_fingerprint(bench: peers.Bench) -> None:
    import ssl

    loader, port = bench.listening("load", "--tls", "--self-signed", "-o")
    shown = re.search(r"SHA-256 fingerprint ([0-9A-F:]{95})\n", loader.stderr)[1]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    import hashlib

    with context.wrap_socket(peers.connect(port)) as sock:
        assert hashlib.sha256(sock.getpeercert(True)).hexdigest() == shown.replace(":", "").lower()
        sock.unwrap()
    assert loader.wait() == 0


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_versions_and_ciphers_can_be_chosen(bench: peers.Bench, certificates: Certificates, version: str) -> None:
    import ssl

    ours = ["--tls", "--certfile", certificates.server, "--min-tls-version", "1.3"]
    loader, port = bench.listening("load", *ours)
    if version == "1.2":
        with pytest.raises(ssl.SSLError, match="version"):
            peers.connect_tls(port, certificates.ca, version=version)
        loader.says("unsupported protocol")
        cipher = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
        loader, port = bench.listening("load", "--tls", "--certfile", certificates.server, "--ciphers", cipher)
    peers.connect_tls(port, certificates.ca, version=version).close()


@pytest.mark.parametrize("nothing", ["0", "0s", "0ms", "0.0m", "off"])
def test_no_time_at_all_is_written_in_any_unit(nothing: str) -> None:
    assert Linger().convert(nothing, None, None) == 0.0
