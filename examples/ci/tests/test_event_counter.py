import pytest
import ringmain
from event_counter import count_events

EVENTS = b'{"event_type":"dns","flow_id":1}\n{"event_type":"tls","flow_id":2}\n{"event_type":"dns","flow_id":3}\n'


@pytest.mark.parametrize("tls", [False, True])
def test_events_are_counted_by_type(ringmain_peer, tls):
    peer = ringmain_peer.saver(EVENTS, times=10_000, tls=tls)
    assert count_events(peer.endpoint, peer.cafile) == {"dns": 20_000, "tls": 10_000}
    assert peer.wait().verdict == "ended"


def test_a_line_that_is_no_event_is_told_with_its_offset(ringmain_peer):
    peer = ringmain_peer.saver(EVENTS + b'{"event_type":7}\n')
    with pytest.raises(ringmain.ParseError, match=f"offset {len(EVENTS)} "):
        count_events(peer.endpoint)
