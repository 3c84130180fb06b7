"""What `--metrics` tells: the figures of every verb, whoever the peers are, and counters that never fall."""

import contextlib
import datetime
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import peers
import pytest
import trustme
from conftest import Certificates
from crews import Crew
from cryptography import x509
from scraping import OPENMETRICS, Metrics, ask

SERVICE: dict[str, Any] = {"start_new_session": True}
# All that labels may say.
LABELS = {
    "verdict": {"ended", "truncated", "reset", "timed out", "stopped"},
    "cause": {"not allowed", "busy", "silent", "untrusted", "timed out", "tls", "other"},
    "direction": {"in", "out", "there", "back"},
    "end": {"source", "destination"},
    "result": {"done", "failed"},
}


@pytest.mark.parametrize("many", [[], ["--max-connections", "5"]], ids=["one", "many"])
def test_a_listener_tells_of_those_who_were_there_and_are(
    bench: peers.Bench, metrics: Metrics, many: list[str]
) -> None:
    _, port = bench.listening("load", *metrics.options, *many, "-O", bench.folder / "out")
    metrics.shows(connections_total=0, connections_open=0, bytes_total__in=0, reads_total=0)
    with peers.connect(port) as first:
        first.sendall(b"12345\n")
        metrics.shows(connections_total=1, connections_open=1, bytes_total__in=6, bytes_total__out=6)
    metrics.shows(connections_total=1, connections_open=0, connections_ended_total__ended=1)
    with peers.connect(port) as second:
        second.sendall(b"123\n")
        metrics.shows(connections_total=2, connections_open=1, bytes_total__in=10)
        peers.close_with_reset(second)
    metrics.shows(connections_total=2, connections_open=0, connections_ended_total__reset=1)
    shown = metrics.all()
    assert shown[("connections_ended_total", "ended")] == 1
    assert (
        shown[
            (
                "bytes_total",
                "in",
            )
        ],
        shown[("bytes_total", "out")],
    ) == (10, 10)
    assert shown[("reads_total",)] >= 2


def test_both_formats_say_the_same(bench: peers.Bench, metrics: Metrics) -> None:
    _, port = bench.listening("load", *metrics.options)
    peers.connect(port).close()
    metrics.shows(connections_ended_total__ended=1)
    plain, modern = (
        {(it.name, *it.labels.items()): it.value for it in metrics.samples(accept) if not it.name.startswith("process")}
        for accept in ("", OPENMETRICS)
    )
    assert plain == modern
    assert ("ringmain_build_info", ("version", "0.1.0")) in plain


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_many_clients_are_summed_and_no_label_names_one(
    bench: peers.Bench, metrics: Metrics, certificates: Certificates, tls: bool
) -> None:
    options = ["--tls", "--certfile", certificates.server] if tls else []
    _, port = bench.listening("load", *metrics.options, "--max-connections", 20, *options)
    line = b"x" * 999 + b"\n"
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(peers.connect_tls(port, certificates.ca) if tls else peers.connect(port))
            sock.sendall(line)
            if isinstance(sock, ssl.SSLSocket):
                stack.callback(sock.unwrap)
        metrics.shows(connections_total=20, connections_open=20, bytes_total__in=20_000, bytes_total__out=20_000)
        samples = [
            it for it in metrics.samples() if it.name.startswith("ringmain_") and it.name != "ringmain_build_info"
        ]
        assert {
            (name, value) for it in samples for name, value in it.labels.items() if value not in LABELS[name]
        } == set()
        assert len(samples) < 50
    metrics.shows(connections_total=20, connections_open=0, connections_ended_total__ended=20)


def test_failed_handshakes_are_told_by_their_cause(
    bench: peers.Bench, metrics: Metrics, certificates: Certificates
) -> None:
    options = ["--tls", "--certfile", certificates.server, "--client-ca", certificates.ca, "--max-connections", 9]
    _, port = bench.listening("load", *metrics.options, *options)
    ask(port, b"GET / HTTP/1.0\r\n\r\n")
    metrics.shows(handshake_failures_total__tls=1)
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.load_cert_chain(certificates.stranger)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones tell a client after its handshake
    with peers.connect(port) as sock, contextlib.suppress(OSError):
        context.wrap_socket(sock, server_hostname="localhost")
    metrics.shows(handshake_failures_total__tls=1, handshake_failures_total__untrusted=1)
    peers.connect(port).close()
    metrics.shows(probes_total=1)
    shown = metrics.all()
    assert sum(value for (name, *_), value in shown.items() if name == "handshake_failures_total") == 2
    assert shown[("connections_total",)] == 0


def test_a_silent_handshake_and_a_missing_header_have_causes_too(bench: peers.Bench, metrics: Metrics) -> None:
    nobody = peers.free_port()
    options = ["--accept-proxy", "--handshake-timeout", "3s", "--max-connections", 9]
    _, port = bench._listening("relay", *metrics.options, *options, "tcp://127.0.0.1:0", f"tcp://127.0.0.1:{nobody}")
    with peers.connect(port) as sock:
        assert peers.ends_in_reset(sock)
    assert peers.is_reset(port, b"no header of that kind\r\n" * 10)
    metrics.shows(handshake_failures_total__timed_out=1, handshake_failures_total__other=1, connections_total=0)
    assert peers.is_reset(port, b"PROXY UNKNOWN\r\n")
    metrics.shows(connect_failures_total=1, connections_total=0)


def test_refused_clients_are_told_by_their_cause(bench: peers.Bench) -> None:
    stranger, busy = Metrics(), Metrics()
    _, port = bench.listening("load", *stranger.options, "--allow", "192.0.2.0/24")
    assert peers.is_reset(port)
    stranger.shows(connections_refused_total__not_allowed=1, connections_refused_total__busy=0)
    _, port = bench.listening("load", *busy.options, "--gate", "refuse")
    with peers.connect(port) as guest:
        guest.sendall(b"here\n")
        busy.shows(connections_open=1)

        def refused() -> bool:
            peers.is_reset(port)
            return busy.all()[("connections_refused_total", "busy")] > 0

        peers.eventually(refused, "one that is refused")
    busy.shows(connections_total=1, connections_ended_total__ended=1, connections_refused_total__not_allowed=0)


@pytest.mark.parametrize("path", ["kernel", "block"])
def test_a_scrape_tells_of_a_reader_that_stands_still(bench: peers.Bench, metrics: Metrics, path: str) -> None:
    program, port = bench.listening("load", *metrics.options, "--path", path, stdout=subprocess.PIPE)
    data = peers.payload(32 << 20)
    sender = peers.send_in_thread(port, data)
    try:
        stalled = metrics.reach(lambda it: it[("stalls_total",)] > 0, "a stall")
        assert stalled[("bytes_total", "in")] < len(data)
        metrics.reach(lambda it: it[("buffer_fullness_ratio",)] > 0, "something that waits")
    finally:
        reader = threading.Thread(target=program.process.stdout.read, args=[len(data)])
        reader.start()
        sender.join()
        reader.join()
    metrics.shows(bytes_total__in=len(data), bytes_total__out=len(data), connections_ended_total__ended=1)
    assert metrics.all()[("stalled_seconds_total",)] > 0


def not_after(path: Path) -> float:
    return x509.load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc.timestamp()


def issue(authority: trustme.CA, path: Path, days: int) -> None:
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    certificate = authority.issue_cert("localhost", not_after=expires)
    new = path.with_name("new")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(new))
    new.rename(path)


def test_the_expiry_is_that_of_the_certificate_in_use(bench: peers.Bench, metrics: Metrics, tmp_path: Path) -> None:
    authority, path = trustme.CA(), tmp_path / "server.pem"
    issue(authority, path, 30)
    first = not_after(path)
    program, _ = bench.listening("load", *metrics.options, "--tls", "--certfile", path, **SERVICE)
    metrics.shows(certificate_expiry_timestamp_seconds__source=first, certificate_reloads_total__done=0)
    path.write_text("garbage")
    program.signal(signal.SIGHUP)
    metrics.shows(certificate_expiry_timestamp_seconds__source=first, certificate_reloads_total__failed=1)
    issue(authority, path, 60)
    program.signal(signal.SIGHUP)
    metrics.shows(
        certificate_expiry_timestamp_seconds__source=not_after(path),
        certificate_reloads_total__done=1,
        certificate_reloads_total__failed=1,
        reopenings_total=2,
    )
    assert not_after(path) > first


def test_each_end_of_a_relay_has_a_certificate_of_its_own(
    bench: peers.Bench, metrics: Metrics, certificates: Certificates
) -> None:
    _, sink = bench.listening("load", "--tls", "--certfile", certificates.server, "--client-ca", certificates.ca)
    ours = ["--source-certfile", certificates.server, "--destination-certfile", certificates.client]
    options = [*ours, "--destination-cafile", certificates.ca, "--destination-server-name", "localhost"]
    ends = ["tcps://127.0.0.1:0", f"tcps://127.0.0.1:{sink}"]
    _, port = bench._listening("relay", *metrics.options, *options, *ends)
    metrics.shows(
        certificate_expiry_timestamp_seconds__source=not_after(certificates.server),
        certificate_expiry_timestamp_seconds__destination=not_after(certificates.client),
    )
    with peers.connect_tls(port, certificates.ca) as sock:
        sock.sendall(b"12345")
        metrics.shows(bytes_total__there=5, bytes_total__back=0, connections_open=1)
        sock.unwrap()
    metrics.shows(connections_total=1, connections_open=0, connections_ended_total__ended=1)


@pytest.mark.parametrize("many", [[], ["--max-connections", "3"]], ids=["one", "many"])
def test_a_relay_tells_of_both_ways(bench: peers.Bench, metrics: Metrics, many: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        _, port = bench.relaying(url, *metrics.options, *many)
        with peers.connect(port) as client:
            server = listener.accept()[0]
            client.sendall(b"12345")
            server.sendall(b"123")
            metrics.shows(bytes_total__there=5, bytes_total__back=3, connections_open=1, connections_total=1)
            server.close()
    metrics.shows(bytes_total__there=5, bytes_total__back=3, connections_open=0, connections_total=1)
    assert metrics.all()[("reads_total",)] >= 2
    assert peers.is_reset(port)
    metrics.shows(connect_failures_total=1)


def test_who_connects_again_counts_that(bench: peers.Bench, metrics: Metrics) -> None:
    port = peers.free_port()
    options = ["--retry", "forever", "--reconnect"]
    program = bench.ringmain("save", *metrics.options, *options, f"tcp://127.0.0.1:{port}", stdin=subprocess.PIPE)
    peers.wait_for_port(metrics.port)
    metrics.reach(lambda it: it[("connect_failures_total",)] > 0, "a try in vain")
    metrics.shows(connections_total=0, reconnects_total=0)
    with socket.create_server(("127.0.0.1", port)) as listener:
        first = listener.accept()[0]
        program.process.stdin.write(b"12345\n")
        program.process.stdin.flush()
        metrics.shows(connections_total=1, reconnects_total=0, bytes_total__out=6)
        peers.close_with_reset(first)
        program.process.stdin.write(b"123\n")
        program.process.stdin.flush()
        second = listener.accept()[0]
        metrics.shows(connections_total=2, reconnects_total=1, connections_open=1, connections_ended_total__reset=1)
        program.process.stdin.close()
        assert peers.read_all(second).endswith(b"123\n")
        second.close()
    assert program.wait() == 0, program.stderr


def test_what_is_told_is_the_sum_of_the_rows(bench: peers.Bench, metrics: Metrics, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    _, port = bench.listening("load", *metrics.options, "--max-connections", 40, "--stats-file", stats)

    def send(first: int) -> None:
        for number in range(first, first + 10):
            with peers.connect(port) as sock:
                sock.sendall((b"%d\n" % number) * 1000 * number)
                if number % 3 == 0:
                    peers.close_with_reset(sock)

    threads = [threading.Thread(target=send, args=[first]) for first in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics.shows(connections_total=30, connections_open=0)
    rows = [json.loads(line) for line in stats.read_text().splitlines()]
    told = metrics.all()
    assert len(rows) == 30
    assert told[("bytes_total", "in")] == sum(row["bytes"] for row in rows)
    for name in ("reads", "stalls", "dropped_bytes"):
        assert told[(f"{name}_total",)] == sum(row.get(name, 0) for row in rows)
    for verdict in LABELS["verdict"]:
        assert told[("connections_ended_total", verdict)] == sum(row["verdict"] == verdict for row in rows)


def test_counters_never_fall_while_clients_come_and_go(bench: peers.Bench, metrics: Metrics) -> None:
    data = bench.file(peers.payload(1 << 20))
    saver, port = bench.listening("save", "--listen", *metrics.options, "-I", data, "--max-connections", 4)

    def fetch() -> None:
        for number in range(15):
            with peers.connect(port) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
                if number % 3:
                    assert len(peers.read_all(sock)) == 1 << 20
                else:
                    sock.recv(1 << 16)
                    peers.close_with_reset(sock)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    before: dict[tuple[str, ...], float] = {}
    while any(thread.is_alive() for thread in threads):
        now = metrics.all()
        fallen = {
            key: (before[key], now[key]) for key in before if key[0].endswith("_total") and now[key] < before[key]
        }
        assert not fallen
        before = now
    metrics.shows(connections_total=45, connections_open=0, connections_ended_total__ended=30)
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_several_processes_are_summed_and_one_that_dies_takes_nothing_back(
    bench: peers.Bench, metrics: Metrics, certificates: Certificates, tls: bool
) -> None:
    crew = Crew(bench, *metrics.options, *(["--tls", "--certfile", certificates.server] if tls else []))
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connect = peers.connect_tls(crew.port, certificates.ca) if tls else peers.connect(crew.port)
            stack.enter_context(connect).sendall(b"12345\n")
        metrics.shows(connections_total=4, connections_open=4, bytes_total__in=24, bytes_total__out=24)
        if tls:
            metrics.shows(certificate_expiry_timestamp_seconds__source=not_after(certificates.server))
            ask(crew.port, b"no handshake\r\n")
            metrics.shows(handshake_failures_total__tls=1)
        one = crew.worker_of(crew.files[0])
        assert one is not None
        os.kill(one, signal.SIGKILL)
        metrics.shows(connections_open=2, connections_total=4, bytes_total__in=24)
        peers.eventually(lambda: len(crew.workers()) == 2, "another process")
        with peers.connect_tls(crew.port, certificates.ca) if tls else peers.connect(crew.port) as sock:
            sock.sendall(b"123\n")
            metrics.shows(connections_open=3, connections_total=5, bytes_total__in=28, bytes_total__out=28)


@pytest.mark.parametrize("verb", [["load", "--connect"], ["save"], ["save", "--reconnect"], ["relay", "--connect"]])
def test_each_try_of_a_first_connect_in_vain_is_counted(bench: peers.Bench, metrics: Metrics, verb: list[str]) -> None:
    nobody = f"tcp://127.0.0.1:{peers.free_port()}"
    other = ["tcp://127.0.0.1:0"] if verb[0] == "relay" else []
    bench.ringmain(*verb, *metrics.options, "--retry", "forever", nobody, *other)
    peers.wait_for_port(metrics.port)
    metrics.reach(lambda it: it[("connect_failures_total",)] > 1, "two tries in vain")


def test_a_relay_counts_each_try_for_a_client(bench: peers.Bench, metrics: Metrics) -> None:
    nobody = f"tcp://127.0.0.1:{peers.free_port()}"
    _, port = bench.relaying(nobody, *metrics.options, "--retry", "2")
    assert peers.is_reset(port)
    metrics.shows(connect_failures_total=3)
