"""What a lost client never got goes to the next one: all of it, once, in order."""

from hypothesis import given
from hypothesis import strategies as st

from ringmain.flow.next_client import Carry

# For each client: how much it is sent, what its kernel acknowledges of that, and how much is accepted and never sent.
clients = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=8)


@given(clients)
def test_clients_that_are_lost_one_after_another_get_a_stream_without_a_hole_or_a_byte_twice(
    visits: list[tuple[int, int, int]],
) -> None:
    data = bytes(number % 251 for number in range(2000))
    carry, got, position = Carry(), b"", 0
    for wanted, acknowledged, unsent in visits:
        sent = debt = carry.due[:wanted]
        carry.sent(memoryview(debt))
        carry.paid(len(debt), len(carry.due))
        if not carry.due:  # only then does anything new go out
            new = data[position : position + wanted - len(debt)]
            carry.sent(memoryview(new))
            sent += new
            position += len(new)
        had = min(acknowledged, len(sent))
        carry.acknowledged(len(sent) - had)
        got += sent[:had]
        rest = b"" if carry.due else data[position : position + unsent]
        position += len(rest)
        carry.lost(rest)
    assert got + carry.due == data[:position]


def test_losing_a_client_twice_owes_nothing_twice() -> None:
    carry = Carry()
    carry.sent(memoryview(b"sent"))
    carry.lost(b" and gathered")
    carry.lost(b"")
    assert carry.due == b"sent and gathered"


def test_a_client_may_be_lost_before_it_is_known_how_much_it_was_paid() -> None:
    carry = Carry()
    carry.sent(memoryview(b"the first"))
    carry.lost(b"")
    carry.sent(memoryview(b"the "))
    carry.paid(4, 9)
    carry.sent(memoryview(b"fi"))  # of what is due still
    carry.lost(b"")
    carry.paid(2, 5)
    assert carry.due == b"the first"
