"""What the fixtures of `ringmain.pytest_plugin` give to a test. Knows nothing of pytest.

def test_my_sender(ringmain_peer: ringmain.testing.Peers) -> None: ...  # or ringmain_module_peer, ringmain_session_peer
def test_my_receiver_is_fast(ringmain_throughput: ringmain.testing.Throughput) -> None: ...
"""

from ringmain.testing.peer import Peer, PeerConnection, Peers
from ringmain.testing.throughput import Measurement, Round, Throughput

__all__ = ["Measurement", "Peer", "PeerConnection", "Peers", "Round", "Throughput"]
