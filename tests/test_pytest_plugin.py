"""The fixtures of the pytest plugin: peers that tell how a connection ended, and the caller's own throughput."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peers
import pytest

import ringmain
from ringmain.testing import Peer, Peers, Throughput

pytest_plugins = ["pytester"]

TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
RECEIVER = """
import os
import socket
import time


def receive(peer):
    time.sleep(float(os.environ.get("DELAY", 0)))
    size = 0
    with socket.create_connection((peer.host, peer.port)) as sock:
        while data := sock.recv(1 << 16):
            size += len(data)
    return size


def test_receiver(ringmain_throughput):
    ringmain_throughput.receive(receive, size=1_000_000, rounds=2)
"""

SHARING = """
import pytest


@pytest.fixture(scope="{scope}")
def peer(ringmain_{scope}_peer):
    return ringmain_{scope}_peer.loader()
"""
SHARED = """
import os
import socket
from pathlib import Path

import pytest


@pytest.mark.parametrize("size", range(1, 7))
def test_a_peer_that_others_use_too(peer, size):
    with socket.create_connection((peer.host, peer.port)) as sock:
        sock.sendall(b"x" * size)
    assert peer.wait().size == size
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    with Path({log!r}).open("a") as log:
        log.write(f"{{worker}} {{peer.port}} {{peer._process.pid}}\\n")
"""


def dialled(peer: Peer) -> socket.socket:
    """Connect as someone's own program would."""
    sock = socket.create_connection((peer.host, peer.port), peers.TIMEOUT)
    if peer.cafile is None:
        return sock
    context = ssl.create_default_context(cafile=peer.cafile)
    return context.wrap_socket(sock, server_hostname=peer.host, suppress_ragged_eofs=False)


def close(sock: socket.socket) -> None:
    if isinstance(sock, ssl.SSLSocket):
        sock.unwrap()
    sock.close()


def send(*parts: bytes) -> Callable[[Peer], int]:
    def sender(peer: Peer) -> int:
        with dialled(peer) as sock:
            for part in parts:
                sock.sendall(part)
            close(sock)
        return sum(map(len, parts))

    return sender


def receive(peer: Peer) -> int:
    with dialled(peer) as sock:
        return len(peers.read_all(sock))


@TLS
def test_a_loader_tells_what_a_sender_sent(ringmain_peer: Peers, tls: bool) -> None:
    peer = ringmain_peer.loader(tls=tls)
    first, second = peers.payload(3_000_000), peers.payload(7, seed=2)
    send(first)(peer)
    send(second)(peer)
    for data in (first, second):
        connection = peer.wait()
        assert (connection.verdict, connection.error) == ("ended", None)
        assert (connection.size, connection.sha256) == (len(data), peers.sha256(data))
        assert connection.tls == ("TLSv1.3" if tls else None)
    assert [connection.size for connection in peer.connections] == [3_000_000, 7]


@TLS
@pytest.mark.parametrize(("size", "times"), [(1_000_003, 1), (7, 100_000), (300_000, 3), (0, 1)])
def test_a_saver_gives_each_receiver_the_payload(ringmain_peer: Peers, tls: bool, size: int, times: int) -> None:
    data = peers.payload(size)
    peer = ringmain_peer.saver(data, times=times, tls=tls)
    assert peer.size == size * times
    for _ in range(2):
        with dialled(peer) as sock:
            assert peers.sha256(peers.read_all(sock)) == peers.sha256(data * times)
        connection = peer.wait()
        assert (connection.verdict, connection.size, connection.error) == ("ended", peer.size, None)


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_reset_is_told_with_its_reason(ringmain_peer: Peers, verb: str) -> None:
    peer = ringmain_peer.loader() if verb == "load" else ringmain_peer.saver(bytes(1 << 20), times=100)
    sock = dialled(peer)
    if verb == "load":
        sock.sendall(b"some")
    else:
        assert sock.recv(1)
    peers.close_with_reset(sock)
    connection = peer.wait()
    assert connection.verdict == "reset"
    assert connection.error is not None
    assert f"{verb} from" in connection.error or f"{verb} to" in connection.error


def test_a_stream_without_close_notify_is_told_from_a_proper_end(ringmain_peer: Peers) -> None:
    peer = ringmain_peer.loader(tls=True)
    with dialled(peer) as sock:
        sock.sendall(b"some")
        socket.socket.shutdown(sock, socket.SHUT_WR)
        connection = peer.wait()
    assert (connection.verdict, connection.size, connection.sha256) == ("truncated", 4, peers.sha256(b"some"))
    assert "without close_notify" in str(connection.error)


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_handshake_that_fails_is_told_and_the_next_client_served(ringmain_peer: Peers, verb: str) -> None:
    peer = ringmain_peer.loader(tls=True) if verb == "load" else ringmain_peer.saver(b"", tls=True)
    with pytest.raises(ssl.SSLCertVerificationError), socket.create_connection((peer.host, peer.port)) as sock:
        ssl.create_default_context().wrap_socket(sock, server_hostname=peer.host)
    connection = peer.wait()
    assert (connection.verdict, connection.size) == ("failed", 0)
    assert "TLS handshake" in str(connection.error)
    assert receive(peer) == 0 if verb == "save" else send(b"x")(peer)
    assert peer.wait().verdict == "ended"


def test_clients_that_come_meanwhile_wait_connected(ringmain_peer: Peers) -> None:
    peer = ringmain_peer.loader()
    with dialled(peer) as first, dialled(peer) as second:
        second.sendall(b"second")
        second.close()
        first.sendall(b"first")
        assert peer.connections == []
        first.close()
        assert [peer.wait().size, peer.wait().size] == [5, 6]


def test_a_connection_that_stays_open_makes_waiting_time_out(ringmain_peer: Peers) -> None:
    peer = ringmain_peer.loader()
    with dialled(peer):
        with pytest.raises(
            ringmain.TimedOutError, match=rf"wait for tcp://127.0.0.1:{peer.port}: no connection"
        ) as told:
            peer.wait(0.05)
        assert isinstance(told.value, TimeoutError)
        assert peer.connections == []


def test_a_peer_serves_a_test_that_runs_an_event_loop(ringmain_peer: Peers) -> None:
    peer = ringmain_peer.loader(tls=True)
    data = peers.payload(1_000_000)

    async def main() -> None:
        async with ringmain.save(peer.endpoint, cafile=peer.cafile) as saver:
            await saver.write(data)
        connection = await asyncio.to_thread(peer.wait)
        assert connection.sha256 == peers.sha256(data)

    asyncio.run(main())


def test_a_process_that_is_gone_is_noticed_at_once(ringmain_peer: Peers) -> None:
    peer = ringmain_peer.loader()
    os.kill(peer._process.pid, signal.SIGKILL)
    with pytest.raises(ringmain.RingmainError, match="its process has ended"):
        peer.wait()


def test_all_peers_end_with_the_test_whatever_is_connected() -> None:
    made = Peers()
    ours = [made.loader(), made.saver(bytes(1 << 20), times=100), made.loader(tls=True)]
    socks = [dialled(peer) for peer in ours]
    made.close()
    for peer, sock in zip(ours, socks, strict=True):
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            peers.connect(peer.port)


def test_a_peer_does_not_outlive_tests_that_are_killed() -> None:
    code = "import os, ringmain.testing as t; print(t.Peers().loader().port, flush=True); os.kill(os.getpid(), 9)"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, timeout=peers.TIMEOUT
    )
    port = int(result.stdout)
    peers.eventually(lambda: "LISTEN" not in peers.states(port), "the end of the peer")


@TLS
def test_throughput_counts_the_bytes_of_every_round(ringmain_peer: Peers, tls: bool) -> None:
    received = Throughput(ringmain_peer).receive(receive, b"abc", size=1_000_000, rounds=3, tls=tls)
    sent = Throughput(ringmain_peer).send(send(bytes(1_000_000)), rounds=3, tls=tls)
    for measurement, size in ((received, 1_000_002), (sent, 1_000_000)):
        assert [each.size for each in measurement.rounds] == [size] * 3
        middle = sorted(measurement.rounds, key=lambda each: each.seconds)[1]
        assert measurement.gb_per_second == pytest.approx(size / 1e9 / middle.seconds)
        assert all(each.seconds > 0 and each.cpu_seconds > 0 for each in measurement.rounds)
        assert (
            measurement.cpu_seconds_per_gb == sorted(each.cpu_seconds / (size / 1e9) for each in measurement.rounds)[1]
        )


def test_a_transfer_that_loses_bytes_is_no_measurement(ringmain_peer: Peers) -> None:
    def leave_early(peer: Peer) -> int:
        with dialled(peer) as sock:
            return len(sock.recv(1000))

    def break_off(peer: Peer) -> int:
        sock = dialled(peer)
        sock.sendall(b"some")
        peers.close_with_reset(sock)
        return 4

    for wrong, complaint in [
        (
            lambda throughput: throughput.receive(lambda peer: receive(peer) - 1, b"ab", size=10),
            "received 9 bytes, the peer sent 10",
        ),
        (lambda throughput: throughput.receive(leave_early), "reset: save to"),
        (lambda throughput: throughput.send(lambda peer: send(b"some")(peer) + 1), "sent 5 bytes, the peer received 4"),
        (lambda throughput: throughput.send(send()), "sent 0 bytes"),
        (lambda throughput: throughput.send(break_off), "reset: load from"),
    ]:
        throughput = Throughput(ringmain_peer)
        with pytest.raises(AssertionError, match=complaint):
            wrong(throughput)
        assert throughput.measurement is None


def test_misuse_is_told_in_a_line(ringmain_peer: Peers) -> None:
    throughput = Throughput(ringmain_peer)
    throughput.send(send(b"x"), rounds=1)
    with pytest.raises(ringmain.UsageError, match="a second measurement in a test: "):
        throughput.send(send(b"x"))
    with pytest.raises(ringmain.UsageError, match="a throughput without bytes: "):
        Throughput(ringmain_peer).receive(receive, b"")


def test_without_pytest_benchmark_the_figures_are_told_all_the_same(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(RECEIVER)
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "--junitxml=result.xml")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r".* ringmain throughput .*", r"\S+::test_receiver: \S+ GB/s .* CPU s/GB, 2 x .* MB"])
    assert "ringmain_throughput" in Path("result.xml").read_text()


def test_with_pytest_benchmark_a_slower_receiver_fails_the_comparison(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(RECEIVER, test_other="def test_other(): pass")
    result = pytester.runpytest_subprocess("--benchmark-autosave", "--benchmark-only")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*ringmain throughput*", "*benchmark: 1 tests*", "test_receiver *"])
    [saved] = Path(".benchmarks").rglob("*.json")
    [figures] = json.loads(saved.read_text())["benchmarks"]
    assert figures["stats"]["rounds"] == 2
    assert set(figures["extra_info"]) == {"size", "GB/s", "CPU s/GB"}
    generous = pytester.runpytest_subprocess("--benchmark-compare", "--benchmark-compare-fail=mean:20")  # seconds more
    assert generous.ret == pytest.ExitCode.OK
    monkeypatch.setenv("DELAY", "1")
    strict = pytester.runpytest_subprocess("--benchmark-compare", "--benchmark-compare-fail=mean:200%")
    assert strict.ret != pytest.ExitCode.OK
    strict.stderr.fnmatch_lines(["*Performance has regressed*"])
    strict.stdout.fnmatch_lines(["*ringmain throughput*"])


def test_a_disabled_benchmark_makes_one_transfer(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(RECEIVER)
    result = pytester.runpytest_subprocess("--benchmark-disable")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_receiver: *, 1 x 1.04858 MB"])


def test_a_run_without_the_plugin_has_no_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(RECEIVER)
    result = pytester.runpytest_subprocess("-p", "no:ringmain")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'ringmain_throughput' not found"])


def test_a_run_that_uses_no_fixture_imports_nothing_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\n"
        "def test_modules():\n"
        "    assert {name for name in sys.modules if name.startswith('ringmain')} == "
        "{'ringmain', 'ringmain.errors', 'ringmain.pytest_plugin'}\n"
        "    assert not {'uvloop', 'trustme', 'cryptography'} & set(sys.modules)\n"
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_tls_without_trustme_says_what_to_install(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\n"
        "def test_tls(ringmain_peer, monkeypatch):\n"
        "    monkeypatch.setitem(sys.modules, 'trustme', None)\n"
        "    ringmain_peer.loader(tls=True)\n"
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*UsageError: a peer with TLS: it needs trustme; pip install 'ringmain[[]pytest]'"])


@pytest.mark.parametrize("scope", ["module", "session"])
@pytest.mark.parametrize("workers", [0, 2])
def test_peers_are_shared_by_a_module_or_a_run_and_by_no_two_workers(
    pytester: pytest.Pytester, scope: str, workers: int
) -> None:
    log = pytester.path / "log"
    code = SHARED.format(log=str(log))
    pytester.makeconftest(SHARING.format(scope=scope))
    pytester.makepyfile(test_one=code, test_two=code)
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "-p", "no:randomly", "-n", str(workers))
    result.assert_outcomes(passed=12)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 12
    by_worker = {worker: {pid for name, _, pid in lines if name == worker} for worker, _, _ in lines}
    assert len(set.union(*by_worker.values())) == sum(map(len, by_worker.values()))  # none is of two workers
    assert all(len(pids) <= (2 if scope == "module" else 1) for pids in by_worker.values())
    if not workers:
        assert [len(pids) for pids in by_worker.values()] == [2 if scope == "module" else 1]
    for pid in set.union(*by_worker.values()):  # all have ended with the run
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_peer_that_was_asked_for_twice_is_one_of_several(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "def test_scopes(ringmain_peer, ringmain_module_peer, ringmain_session_peer):\n"
        "    made = [it.loader() for it in (ringmain_peer, ringmain_module_peer, ringmain_session_peer)]\n"
        "    assert len({peer.port for peer in made}) == 3\n"
    )
    pytester.runpytest_subprocess("-p", "no:benchmark").assert_outcomes(passed=1)
