"""What a service manager hears: when a run is ready, that it goes on, who is there, and that it stops."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from managers import Manager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = f"{tmp_path}/notify" if request.param == "path" else f"@ringmain-{os.getpid()}-{tmp_path.stat().st_ino}"
    it = Manager(address)
    yield it
    it.sock.close()


def test_a_listener_is_ready_once_clients_can_come(bench: peers.Bench, manager: Manager) -> None:
    port = peers.free_port()
    program = bench.ringmain("load", f"tcp://127.0.0.1:{port}", env=manager.environment)
    manager.hears("READY=1")
    with peers.connect(port) as client:
        client.sendall(b"12345")
        manager.hears(f"STATUS=1 connected (127.0.0.1:{client.getsockname()[1]}), 5 B in, ")
    manager.hears("STATUS=0 connected, 5 B in, 5 B out")
    program.signal(15)
    manager.hears("STOPPING=1")
    assert program.wait() == 143
    assert sum(it == "READY=1" for it in manager.heard) == 1
    assert not any("WATCHDOG" in it for it in manager.heard)


def test_who_connects_is_ready_once_the_peer_is_there(bench: peers.Bench, manager: Manager) -> None:
    port = peers.free_port()
    bench.ringmain("save", "--retry", "forever", f"tcp://127.0.0.1:{port}", stdin=-1, env=manager.environment)
    assert manager.hears("STATUS=") == "STATUS=beginning"
    with socket.create_server(("127.0.0.1", port)) as listener:
        manager.hears("READY=1")
        manager.hears("STATUS=connected, ")
        listener.accept()[0].close()
    assert [it for it in manager.heard if "READY" in it] == ["READY=1"]


@pytest.mark.parametrize("many", [[], ["--max-connections", "3"]])
def test_a_relay_tells_how_many_it_serves(bench: peers.Bench, manager: Manager, many: list[str]) -> None:
    port = peers.free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        bench.ringmain("relay", *many, f"tcp://127.0.0.1:{port}", url, env=manager.environment)
        manager.hears("READY=1")
        with peers.connect(port) as client:
            server = listener.accept()[0]
            client.sendall(b"12345")
            server.sendall(b"123")
            manager.hears(f"STATUS=1 connected (127.0.0.1:{client.getsockname()[1]}), 5 B there, 3 B back")
            server.close()


def test_the_watchdog_hears_that_the_loop_runs(bench: peers.Bench, manager: Manager) -> None:
    environment = {**manager.environment, "WATCHDOG_USEC": "40000"}
    bench.ringmain("load", "tcp://127.0.0.1:0", env=environment)
    for _ in range(3):
        manager.hears("WATCHDOG=1")


def test_a_watchdog_of_another_process_hears_nothing(bench: peers.Bench, manager: Manager) -> None:
    environment = {**manager.environment, "WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"}
    program = bench.ringmain("load", "tcp://127.0.0.1:0", env=environment)
    manager.hears("READY=1")
    program.signal(15)
    manager.hears("STOPPING=1")
    assert "WATCHDOG=1" not in manager.heard


def test_processes_are_one_service(bench: peers.Bench, manager: Manager) -> None:
    port = peers.free_port()
    output = bench.folder / "part-{process}"
    arguments = ["--processes", "2", "--max-connections", "4", "--output", str(output), f"tcp://127.0.0.1:{port}"]
    program = bench.ringmain("load", *arguments, env=manager.environment)
    manager.hears("READY=1")
    with peers.connect(port) as one, peers.connect(port) as other:
        names = [f"127.0.0.1:{it.getsockname()[1]}" for it in (one, other)]
        manager.hears(f"STATUS=2 connected ({', '.join(names)}), ")
        program.signal(15)
        manager.hears("STOPPING=1")
    assert program.wait() == 143
    assert [it for it in manager.heard if "READY" in it] == ["READY=1"]


def test_a_command_does_not_hear_of_the_manager(bench: peers.Bench, manager: Manager) -> None:
    port, told = peers.free_port(), bench.folder / "told"
    command = f"cat > /dev/null; env > {told}"
    environment = {**manager.environment, "WATCHDOG_USEC": "10000000"}
    program = bench.ringmain("load", "-o", "--exec", command, f"tcp://127.0.0.1:{port}", env=environment)
    manager.hears("READY=1")
    peers.connect(port).close()
    assert program.wait() == 0, program.stderr
    assert "RINGMAIN_PEER" in told.read_text()
    assert "NOTIFY_SOCKET" not in told.read_text()
    assert "WATCHDOG_USEC" not in told.read_text()


def test_a_manager_that_is_gone_keeps_nobody_from_working(bench: peers.Bench, tmp_path: Path) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "nobody")}
    program, port = bench.listening("load", "-o", env=environment, stdout=sys.stderr.fileno())
    peers.connect(port).close()
    assert program.wait() == 0, program.stderr


def test_who_waits_for_another_connection_says_so(bench: peers.Bench, manager: Manager) -> None:
    port = peers.free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        bench.ringmain("save", "--reconnect", f"tcp://127.0.0.1:{port}", stdin=-1, env=manager.environment)
        manager.hears("STATUS=connected, ")
        peers.close_with_reset(listener.accept()[0])
    manager.hears(f"STATUS=waiting for 127.0.0.1:{port} (")
    with socket.create_server(("127.0.0.1", port)):
        manager.hears("STATUS=connected, ")
