"""The ring against plain bytes."""

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringmain._ring import Ring


def fill(ring: Ring, data: bytes) -> int:
    """Commit as much of data as fits one window; return how much."""
    view = ring.reserve()
    if view is None:
        return 0
    size = min(len(view), len(data))
    view[:size] = data[:size]
    view.release()
    ring.commit(size)
    return size


class RingMachine(RuleBasedStateMachine):
    """Whatever the order of filling, taking, keeping and dropping: the same bytes, in order, within the bound."""

    @initialize(delimiter=st.sampled_from([b"", b"\n", b"\r\n", b"aba"]), block=st.integers(1, 40))
    def begin(self, delimiter: bytes, block: int) -> None:
        self.ring = Ring(6 * block, block, delimiter, 1 << 20)
        self.delimiter = delimiter
        self.sent = bytearray()
        self.got = bytearray()
        self.kept: list[tuple[memoryview, bytes]] = []

    @rule(data=st.lists(st.sampled_from([b"a", b"b", b"\r", b"\n", b"aba", b"\r\n", b"x" * 9]), max_size=20))
    def send(self, data: list[bytes]) -> None:
        rest = b"".join(data)
        while rest and (size := fill(self.ring, rest)):
            self.sent += rest[:size]
            rest = rest[size:]

    @rule(keep=st.booleans())
    def take(self, keep: bool) -> None:
        view = self.ring.take()
        if view is None:
            return
        assert view.readonly
        assert len(view)
        assert not self.delimiter or bytes(view).endswith(self.delimiter)
        self.got += view
        if keep:
            self.kept.append((view, bytes(view)))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        view, before = self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))
        assert bytes(view) == before
        view.release()

    @rule()
    def finish(self) -> None:
        self.ring.finish()
        while (view := self.ring.take()) is not None:
            self.got += view
        assert self.got == self.sent

    @invariant()
    def nothing_is_changed_reordered_or_lost(self) -> None:
        if not hasattr(self, "ring"):
            return
        assert self.sent.startswith(self.got)
        assert all(bytes(view) == before for view, before in self.kept)
        assert self.ring.lent <= self.ring.block_count
        assert 0 <= self.ring.fullness <= 1

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            self.kept.clear()
            self.ring.drop()
            if self.ring.lent:
                gc.collect()
            assert self.ring.lent == 0
            assert self.ring.fullness == 0


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_a_block_returns_with_its_last_view_and_is_used_next() -> None:
    ring = Ring(400, 100)
    fill(ring, b"x" * 100)
    view = ring.take()
    part, rest = view[:10], view[10:]
    view.release()
    part.release()
    assert ring.lent == 1
    rest.release()
    assert ring.lent == 0
    assert ring.fullness == 0.25  # one block was made, and it is the one being filled


def test_without_a_free_block_there_is_no_window_until_a_view_dies() -> None:
    released = []
    ring = Ring(400, 100)
    ring.on_release = lambda: released.append(True)
    views = []
    while fill(ring, b"x" * 100):
        views.append(ring.take())
    assert len(views) == 4
    assert ring.starved
    assert not released
    views.pop().release()
    assert released == [True]
    assert fill(ring, b"y" * 100) == 100


def test_views_are_read_only_and_outlive_the_ring() -> None:
    ring = Ring(400, 100)
    fill(ring, b"abc")
    view = ring.take()
    del ring
    gc.collect()
    assert bytes(view) == b"abc"
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1


def test_a_record_longer_than_a_block_grows_it_up_to_the_limit() -> None:
    ring = Ring(400, 100, b"\n", 1000)
    record = b"r" * 700 + b"\n"
    rest = record
    while rest:
        rest = rest[fill(ring, rest) :]
    assert bytes(ring.take()) == record
    with pytest.raises(OverflowError, match="longer than 1000 bytes"):
        while fill(ring, b"r" * 100):
            pass


def test_the_bytes_of_two_streams_share_no_block() -> None:
    ring = Ring(400, 100, b"\n")
    fill(ring, b"one\ntail")
    ring.finish()
    fill(ring, b"two\n")
    assert [bytes(ring.take()) for _ in range(2)] == [b"one\ntail", b"two\n"]


def test_a_window_that_was_not_reserved_cannot_be_committed() -> None:
    ring = Ring(400, 100)
    ring.reserve()
    with pytest.raises(ValueError, match="more than was reserved"):
        ring.commit(101)
    with pytest.raises(ValueError, match="four blocks"):
        Ring(300, 100)
