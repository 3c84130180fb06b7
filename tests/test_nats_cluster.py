"""`ringmain relay` into a stream of three replicas that loses its leader: each record once, in order."""

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


@pytest.mark.parametrize("way", ["killed", "told to step down"])
def test_a_leader_that_is_lost_costs_no_record_and_brings_none_twice(
    bench: peers.Bench, cluster: Cluster, way: str
) -> None:
    relay, port = relaying(bench, cluster, "--max-connections", 4)
    senders = [Sender(port, seed, rate=4e6) for seed in range(4)]
    peers.eventually(lambda: cluster.stored() > 1_000_000, "some of it to be in the stream")
    lost = cluster.leader()
    if way == "killed":
        lost.kill()
    else:
        cluster.step_down()
    stored = cluster.stored()
    peers.eventually(lambda: cluster.stored() > stored + 1_000_000, "more of it to be in the stream")
    check(cluster, senders)
    assert "Traceback" not in relay.stderr, relay.stderr
