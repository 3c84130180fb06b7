"""What `--metrics` tells of loads from a log, and of saves and relays into one."""

import signal
import subprocess

import brokers
import peers
import pytest
from scraping import Metrics


def test_a_load_counts_what_it_takes_and_that_it_came_back(
    broker: brokers.Broker, bench: peers.Bench, metrics: Metrics
) -> None:
    broker.publish("events", b"12345\n", b"123\n")
    program = bench.ringmain("load", *metrics.options, "--consumer", "c", broker.url("EVENTS"))
    peers.wait_for_port(metrics.port)
    metrics.shows(connections_open=1, connections_total=1, bytes_total__in=10, bytes_total__out=10, reconnects_total=0)
    broker.kill()
    broker.start()
    metrics.shows(reconnects_total=1)
    broker.publish("events", b"7\n")
    metrics.shows(connections_open=1, connections_total=1, bytes_total__in=12, bytes_total__out=12)
    program.signal(signal.SIGTERM)
    assert program.wait() == 143


def test_a_save_counts_what_is_stored_and_that_it_came_back(
    broker: brokers.Broker, bench: peers.Bench, metrics: Metrics
) -> None:
    program = bench.ringmain("save", *metrics.options, broker.url("events"), stdin=subprocess.PIPE)
    peers.wait_for_port(metrics.port)
    program.process.stdin.write(b"12345\n")
    program.process.stdin.flush()
    metrics.shows(connections_open=1, connections_total=1, bytes_total__in=6, bytes_total__out=6, reconnects_total=0)
    broker.kill()
    metrics.reach(lambda it: it[("connect_failures_total",)] > 0, "a try in vain")
    broker.start()
    metrics.shows(reconnects_total=1)
    program.process.stdin.close()
    assert program.wait() == 0, program.stderr


def test_a_relay_counts_its_clients_and_what_is_stored(
    broker: brokers.Broker, bench: peers.Bench, metrics: Metrics
) -> None:
    options = [*metrics.options, "--max-connections", 3]
    _, port = bench._listening("relay", *options, "tcp://127.0.0.1:0", broker.url("events"))
    with peers.connect(port) as first, peers.connect(port) as second:
        first.sendall(b"12345\n")
        second.sendall(b"123\n")
        metrics.shows(connections_open=2, connections_total=2, bytes_total__in=10, bytes_total__out=10)
        peers.close_with_reset(second)
        metrics.shows(connections_open=1, connections_ended_total__reset=1)
    metrics.shows(connections_open=0, connections_ended_total__ended=1, bytes_total__out=10)


@pytest.mark.parametrize("verb", [["load", "--consumer", "c"], ["save"], ["relay", "tcp://127.0.0.1:0"]])
def test_each_try_of_a_first_connect_in_vain_is_counted(bench: peers.Bench, metrics: Metrics, verb: list[str]) -> None:
    bench.ringmain(*verb, *metrics.options, "--retry", "forever", f"nats://127.0.0.1:{peers.free_port()}/EVENTS")
    peers.wait_for_port(metrics.port)
    metrics.reach(lambda it: it[("connect_failures_total",)] > 1, "two tries in vain")


def test_a_load_counts_the_tries_after_a_loss(broker: brokers.Broker, bench: peers.Bench, metrics: Metrics) -> None:
    bench.ringmain("load", *metrics.options, "--consumer", "c", broker.url("EVENTS"))
    peers.wait_for_port(metrics.port)
    metrics.shows(connections_open=1, connect_failures_total=0)
    broker.kill()
    metrics.reach(lambda it: it[("connect_failures_total",)] > 1, "two tries in vain")
    broker.start()
    metrics.shows(reconnects_total=1)
