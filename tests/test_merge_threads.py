"""Members of a merger that threads and the collector stop, and blocks that they free, in the middle of a round."""

import gc
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import peers
import pytest
import test_receiver
from conftest import Certificates, Run
from merging import Sockets, Sums, merger, records
from rings import Cycle

from ringmain._counters import Counters
from ringmain._ring import Ring


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_threads_may_stop_members_while_they_are_read(run: Run, certificates: Certificates, tls: bool) -> None:
    line = b"x" * 99 + b"\n"

    async def main() -> None:
        chance, timers = random.Random(1), []
        sums = Sums()
        merging = merger(Ring(1 << 16, 1 << 14))
        with Sockets(certificates) as sockets:
            for _ in range(30):
                peer, link = sockets.connect(tls=tls)
                member = sums.watch(merging.add(link, Counters()))
                sockets.send(peer, line * 100_000 + b"y" * 200_000)
                timers.append(threading.Timer(chance.uniform(0, 0.2), member.stop))
                timers[-1].start()
            await sums.take_all(merging)
            for timer in timers:
                timer.join()
            for member in sums.digests:
                assert sums.sizes[member] % 100 == 0
                assert sums.sizes[member] + member.dropped == member.counters.bytes_in
        merging.close()

    run(main())


def test_the_collector_may_stop_a_member_or_close_it_all_in_the_middle_of_a_round(run: Run) -> None:
    async def main() -> None:
        for whole in (False, True):
            merging = merger(Ring(1 << 16, 1 << 14))
            with Sockets() as sockets:
                both = [sockets.connect() for _ in range(2)]
                members = [merging.add(link, Counters()) for _, link in both]
                for peer, link in both:
                    peer.sendall(b"for nobody\n")
                    while link.unread() < 11:
                        pass
                gc.collect()
                gc.disable()
                for member in members:
                    test_receiver.Cycle(merging.close if whole else member.stop)
                before = gc.get_threshold()
                gc.set_threshold(1)
                gc.enable()
                try:
                    merging.on_readable()
                finally:
                    gc.set_threshold(*before)
                gc.collect()
                assert [member.verdict for member in members] == ["stopped"] * 2
                if sys.version_info < (3, 12):  # from then on it runs between two instructions of Python only
                    assert [member.counters.bytes_in for member in members] == [0, 0]
            merging.close()

    run(main())


def test_views_that_the_collector_and_other_threads_free_cost_no_byte(run: Run, certificates: Certificates) -> None:
    chance = random.Random(1)

    async def main() -> None:
        sums, sent = Sums(), {}
        merging = merger(Ring(1 << 14, 1 << 12))
        with Sockets(certificates) as sockets, ThreadPoolExecutor(2) as pool:
            for number in range(4):
                peer, link = sockets.connect(tls=number % 2 == 0)
                data = b"".join(records(number, 4000, [0, 10, 50, 100]))
                sent[sums.watch(merging.add(link, Counters()))] = data
                sockets.send(peer, data)
            while len(sums.ended) < len(sent):
                await merging.wait()
                while (found := merging.take_tagged()) is not None:
                    member, view = found
                    sums.count(member, view)
                    fate = chance.randrange(4)
                    if fate == 0:
                        view.release()
                    elif fate == 1:
                        pool.submit(view.release)
                    else:
                        Cycle(view)  # type: ignore[arg-type]
                    del view, found
        for member, data in sent.items():
            assert sums.digests[member].hexdigest() == peers.sha256(data)
        merging.close()

    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1, 5, 1 << 20)
    try:
        run(main())
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
