from event_counter import count_events

EVENT = (
    b'{"timestamp":"2024-05-01T12:00:00.000000+0000","flow_id":1234567890123,"event_type":"flow",'
    b'"src_ip":"192.0.2.1","src_port":51234,"dest_ip":"198.51.100.7","dest_port":443,"proto":"TCP"}\n'
)


def test_throughput(ringmain_throughput):
    def receive(peer):
        return count_events(peer.endpoint)["flow"] * len(EVENT)

    ringmain_throughput.receive(receive, EVENT, size=32 << 20, rounds=10)
