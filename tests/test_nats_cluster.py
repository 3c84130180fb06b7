"""`ringmain relay` into a stream of three replicas that loses its leader: each record once, in order.

`RINGMAIN_NATS_STORM=20` kills leaders at random in so many runs of 100 MB, with one replica and with three. The seed is
printed; `RINGMAIN_NATS_STORM_SEED=7` runs that one instead.
"""

import os
import random
import signal
import sys
import time

import peers
import pytest
from brokers import Cluster
from publishing import Sender, read_log, relaying


@pytest.fixture
def cluster(bench: peers.Bench) -> Cluster:
    cluster = Cluster(bench)
    cluster.add_stream("EVENTS")
    return cluster


def check(cluster: Cluster, senders: list[Sender]) -> None:
    """Wait until all have ended properly, and compare what they have sent with what is in the stream."""
    for sender in senders:
        sender.enough.set()
    for sender in senders:
        sender.until_ended()
    log = read_log(cluster)
    assert {peers.sha256(it.data) for it in log.connections.values()} == {it.sha256 for it in senders}
    assert sorted(verdict for it in log.connections.values() for verdict in it.verdicts) == sorted(
        ("ended", it.size) for it in senders
    )


def test_a_leader_that_is_killed_costs_no_record_and_brings_none_twice(bench: peers.Bench, cluster: Cluster) -> None:
    relay, port = relaying(bench, cluster, "--max-connections", 4)
    senders = [Sender(port, seed, rate=4e6) for seed in range(4)]
    peers.eventually(lambda: cluster.stored() > 1_000_000, "some of it to be in the stream")
    cluster.leader().kill()
    stored = cluster.stored()
    peers.eventually(lambda: cluster.stored() > stored + 1_000_000, "more of it to be in the stream")
    check(cluster, senders)
    assert "Traceback" not in relay.stderr, relay.stderr


def test_a_leader_that_hands_over_changes_no_order(bench: peers.Bench, cluster: Cluster) -> None:
    relay, port = relaying(bench, cluster, "--max-connections", 4)
    senders = [Sender(port, seed, rate=15e6) for seed in range(4)]
    for _ in range(6):  # the more is under way the better: most of what is not acknowledged waits to be sent again
        time.sleep(0.7)
        cluster.step_down()
    check(cluster, senders)
    assert "Traceback" not in relay.stderr, relay.stderr


def test_a_stream_that_gets_replicas_meanwhile_loses_nothing_and_goes_on(bench: peers.Bench) -> None:
    """A server that shares a stream takes a message whose condition is refused for a fault, and ends the stream."""
    cluster = Cluster(bench)
    cluster.add_stream("EVENTS", replicas=1)
    relay, port = relaying(bench, cluster, "--max-connections", 3)
    senders = [Sender(port, seed, rate=4e6) for seed in range(3)]
    peers.eventually(lambda: cluster.stored() > 1_000_000, "some of it to be in the stream")
    cluster.replicate(3)
    stored = cluster.stored()
    peers.eventually(lambda: cluster.stored() > stored + 5_000_000, "more of it to be in the stream")
    check(cluster, senders)
    assert "Traceback" not in relay.stderr, relay.stderr


@pytest.mark.skipif("RINGMAIN_NATS_STORM" not in os.environ, reason="RINGMAIN_NATS_STORM=20 runs it so often")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("replicas", [1, 3])
def test_leaders_that_are_killed_at_any_moment_cost_no_record(bench: peers.Bench, replicas: int) -> None:
    """Each run sends 100 MB from 8 clients, while the stream's leader is killed once or twice, and started again."""
    seed = int(os.environ.get("RINGMAIN_NATS_STORM_SEED", random.randrange(1 << 31)))
    sys.stdout.write(f"RINGMAIN_NATS_STORM_SEED={seed}\n")
    chance = random.Random(seed)
    cluster = Cluster(bench)
    for _ in range(int(os.environ["RINGMAIN_NATS_STORM"])):
        cluster.add_stream("EVENTS", replicas=replicas)
        relay, port = relaying(bench, cluster, "--max-connections", 8)
        senders = [Sender(port, seed, rate=chance.choice([4e6, 20e6]), most=12_500_000) for seed in range(8)]
        for _ in range(chance.choice([1, 2])):
            time.sleep(chance.uniform(0, 2))
            lost = cluster.leader()
            lost.kill()
            time.sleep(chance.uniform(0, 3))
            lost.start()
        for sender in senders:
            sender.until_ended()
        check(cluster, senders)
        assert sum(it.size for it in senders) >= 100_000_000
        relay.signal(signal.SIGTERM)
        assert relay.wait() == 143, relay.stderr
        assert "Traceback" not in relay.stderr, relay.stderr
        cluster.run(lambda js: js.delete_stream("EVENTS"))
