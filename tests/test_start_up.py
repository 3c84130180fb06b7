"""What is imported before a listener is up, and what comes between that and its event loop."""

import subprocess
import sys
from pathlib import Path

import peers

# What takes long to import, and whatever serves clients: those wait in the backlog meanwhile.
HEAVY = {
    *("asyncio", "ssl", "uvloop", "json", "pathlib", "tempfile", "psutil", "cryptography"),
    *("ringmain.blocking", "ringmain.loader", "ringmain.net.gate", "ringmain.net.link", "ringmain.outcome"),
}
# Runs the command in a process that hears of its own audit events.
PROGRAM = """
import os, signal, socket, sys
PORT_FILE = {!r}
def on(event, argument):
    pass
{}
sys.addaudithook(lambda event, arguments: on(event, arguments[0] if arguments else None))
from ringmain.__main__ import main
main()
"""


def start(
    folder: Path, hook: str, *options: str, where: str = "tcp://127.0.0.1:0"
) -> "subprocess.CompletedProcess[str]":
    """Run a load with its port file in a folder; `hook` is Python that defines `on`, which hears of what it does."""
    port_file = str(folder / "port")
    command = [sys.executable, "-c", PROGRAM.format(port_file, hook), "load", *options]
    if where.startswith("tcp"):
        command += ["--port-file", port_file]
    return subprocess.run([*command, where], capture_output=True, text=True, timeout=peers.TIMEOUT)


def test_importing_the_library_imports_next_to_nothing() -> None:
    code = "import sys; before = {*sys.modules}; import ringmain; print(*sorted({*sys.modules} - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {"ringmain", "ringmain.errors", "errno"}


def test_a_listener_is_up_before_what_serves_its_clients_is_imported(tmp_path: Path) -> None:
    hook = (
        "def on(event, argument):\n"
        "    if event == 'os.rename':\n"  # the port file
        "        os.write(1, ' '.join(sys.modules).encode())\n"
        "        os._exit(0)\n"
    )
    imported = set(start(tmp_path, hook).stdout.split())
    assert {"click", "socket", "ringmain.net.listeners"} <= imported
    assert imported & HEAVY == set()


def test_whoever_connects_at_once_is_served(tmp_path: Path) -> None:
    hook = (
        "def on(event, argument):\n"
        "    if event == 'import' and argument == 'asyncio':\n"
        "        with socket.create_connection(('127.0.0.1', int(open(PORT_FILE).read()))) as sock:\n"
        "            sock.sendall(b'early')\n"
    )
    result = start(tmp_path, hook, "--listen-once")
    assert (result.stdout, result.returncode) == ("early", 0), result.stderr


def test_a_signal_that_comes_before_the_loop_runs_leaves_no_port_file(tmp_path: Path) -> None:
    hook = "def on(event, argument):\n    if event == 'os.rename':\n        signal.raise_signal(signal.SIGTERM)\n"
    result = start(tmp_path, hook)
    assert result.returncode == 143, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_comes_as_a_unix_socket_is_made_leaves_no_file_of_it(tmp_path: Path) -> None:
    hook = "def on(event, argument):\n    if event == 'os.chmod':\n        signal.raise_signal(signal.SIGTERM)\n"
    result = start(tmp_path, hook, "--socket-mode", "0600", where=f"unix:{tmp_path / 'socket'}")
    assert result.returncode == 143, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_listener_without_descriptors_for_a_loop_is_never_announced(tmp_path: Path) -> None:
    hook = (
        "import resource\n"
        "def on(event, argument):\n"
        "    if event == 'socket.bind':\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))\n"  # one or two beside the listener
    )
    result = start(tmp_path, hook)
    assert result.returncode == 1, result.stderr
    assert result.stderr == "ringmain: ringmain cannot begin: too many open files; see ulimit -n\n"
    assert list(tmp_path.iterdir()) == []


def test_what_fails_before_the_loop_runs_leaves_no_port_file(tmp_path: Path) -> None:
    result = start(tmp_path, "sys.modules['ringmain.loader'] = None")
    assert result.returncode == 1
    assert "listening on tcp://127.0.0.1:" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_network_is_said_before_anybody_is_told_to_come(tmp_path: Path) -> None:
    result = start(tmp_path, "", "--allow", "nowhere")
    assert result.returncode == 2
    assert "listening" not in result.stderr
