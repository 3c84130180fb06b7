"""The ring by itself, without sockets: what a block costs on its way. Run it with `pytest benchmarks/test_micro.py`."""

from pytest_benchmark.fixture import BenchmarkFixture

from ringmain._ring import Ring

BLOCK = 256 << 10
LINE = b'{"event_type":"flow","flow_id":7919,"src_ip":"192.0.2.1","dest_port":443,"bytes":31}\n'


def _filled(ring: Ring, data: bytes) -> None:
    view = ring.reserve()
    assert view is not None
    view[: len(data)] = data
    ring.commit(len(data))


def test_reserve_and_commit(benchmark: BenchmarkFixture) -> None:
    """One read's worth of bookkeeping: claim a window, declare a byte of it filled, take it back out now and then."""
    ring = Ring(8 << 20, BLOCK)

    def turn() -> None:
        ring.reserve()
        ring.commit(64)
        ring.take()

    benchmark(turn)


def test_reserve_alone(benchmark: BenchmarkFixture) -> None:
    """A reservation may be asked for twice and must cost nothing."""
    benchmark(Ring(8 << 20, BLOCK).reserve)


def test_take_when_there_is_nothing(benchmark: BenchmarkFixture) -> None:
    """What a consumer that is faster than the network asks again and again."""
    benchmark(Ring(8 << 20, BLOCK).take)


def test_hand_out_a_block_and_take_it_back(benchmark: BenchmarkFixture) -> None:
    """A whole block of 256 KiB from claim to release; the bytes themselves are not touched."""
    ring = Ring(8 << 20, BLOCK)

    def turn() -> None:
        ring.reserve()
        ring.commit(BLOCK)
        block = ring.take()
        assert block is not None
        block.release()

    benchmark(turn)


def test_cut_at_the_last_newline(benchmark: BenchmarkFixture) -> None:
    """A block of lines whose last one is incomplete: find the cut, hand out, carry the rest over."""
    ring = Ring(8 << 20, BLOCK, b"\n")
    data = (LINE * (BLOCK // len(LINE) + 1))[: BLOCK - 128]

    def turn() -> None:
        _filled(ring, data)
        block = ring.take()
        assert block is not None
        block.release()
        ring.drop()

    benchmark(turn)


def test_look_for_a_newline_that_is_not_there(benchmark: BenchmarkFixture) -> None:
    """The worst case of a cut: a whole block without a delimiter is searched."""
    ring = Ring(8 << 20, BLOCK, b"\n")
    data = b"x" * (BLOCK - 128)

    def turn() -> None:
        _filled(ring, data)
        assert ring.take() is None
        ring.drop()

    benchmark(turn)
