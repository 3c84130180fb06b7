"""A pump that is stopped: at once, with all that had come before."""

import contextlib
import os
import time
from pathlib import Path

import peers
import pytest
from pumping import loading, moved, running, saving
from streams import connection, drain, fill, flood, pipe, read, run_pump

from ringmain._pump import HAS_SPLICE

# What ends at once takes no longer than this, however busy the machine.
AT_ONCE = 10.0

pytestmark = pytest.mark.skipif(not HAS_SPLICE, reason="this system has no splice")


@pytest.mark.parametrize("state", ["unstarted", "idle", "blocked", "flooded"])
def test_stop_ends_a_load_at_once(state: str) -> None:
    with connection() as (peer, ours), pipe() as (source, sink), contextlib.ExitStack() as stack:
        pump = loading(ours, sink, linger=60)  # a raised mark must not hold up the end
        if state == "unstarted":
            pump.stop("timed out")
        with running(pump) as thread:
            if state == "blocked":
                fill(peer, lambda: pump.paused)
            elif state == "flooded":
                stack.callback(drain(source))
                stack.callback(sink.close)  # the end that drain waits for
                stack.callback(flood(peer))
                peers.eventually(lambda: pump.counters.bytes_out > 10 << 20, "a flood")
            started = time.monotonic()
            pump.stop("timed out")
            pump.stop("stopped")  # the first word counts
            thread.join(peers.TIMEOUT)
            assert time.monotonic() - started < AT_ONCE
        assert (pump.verdict, pump.error, pump.failed) == ("timed out", None, None)
        assert pump.counters.bytes_in == pump.counters.bytes_out


@pytest.mark.parametrize("state", ["idle", "blocked", "flooded"])
def test_stop_ends_a_save_at_once(state: str) -> None:
    with connection() as (peer, ours), pipe() as (idle, _), open("/dev/zero", "rb") as zero:  # noqa: PTH123
        pump = saving(idle, ours) if state == "idle" else saving(zero, ours, through=True)
        wait = drain(peer) if state == "flooded" else None
        with running(pump) as thread:
            if state == "blocked":
                peers.eventually(lambda: pump.paused, "a full connection")
            elif state == "flooded":
                peers.eventually(lambda: pump.counters.bytes_out > 10 << 20, "a flood")
            started = time.monotonic()
            pump.stop()
            thread.join(peers.TIMEOUT)
            assert time.monotonic() - started < AT_ONCE
        assert (pump.verdict, pump.failed) == ("stopped", None)
        ours.close()
        if wait is not None:
            wait()


def test_a_pump_that_is_over_holds_no_descriptors(tmp_path: Path) -> None:
    with connection() as (peer, ours), (tmp_path / "got").open("wb") as sink:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        pump = loading(ours, sink, through=True)
        peer.close()
        run_pump(pump)
        pump.stop()
        assert pump.verdict == "ended"
        assert pump.fullness == 0
        assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208


def test_what_had_come_before_the_stop_is_moved() -> None:
    with connection() as (peer, ours), pipe() as (source, sink):
        peer.sendall(b"already here")
        peers.eventually(lambda: not peers.unacknowledged(peer), "the bytes")
        pump = loading(ours, sink)
        pump.stop()
        run_pump(pump)
        assert (pump.verdict, moved(pump)) == ("stopped", (12, 12))
        assert pump.fullness == 0
        assert read(source, 12) == b"already here"
