"""The fixtures `ringmain_peer`, wider ones of the same kind, and `ringmain_throughput`; pytest finds them by itself.

pip install 'ringmain[pytest]'

It is loaded in every run of pytest where ringmain is installed, so it imports next to nothing before a fixture is asked
for; `-p no:ringmain` leaves it out. Who measures the coverage of ringmain itself starts with `coverage run -m pytest`,
because pytest-cov begins after plugins were imported.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ringmain.testing import Peers, Throughput
    from ringmain.testing.throughput import Benchmark

_PROPERTY = "ringmain_throughput"


@pytest.fixture
def ringmain_peer() -> "Iterator[Peers]":
    """Loaders and savers that listen beside the test, each in a process of its own, plain or under TLS.

    peer = ringmain_peer.loader() receives what your sender sends to peer.host and peer.port (or peer.endpoint)
    peer = ringmain_peer.saver(payload, tls=True) sends to your receiver, which trusts peer.cafile
    connection = peer.wait() tells how it ended: connection.verdict, .error, .size, .sha256

    All are ended after the test. See `ringmain.testing.Peers`.
    """
    yield from _peers()


@pytest.fixture(scope="module")
def ringmain_module_peer() -> "Iterator[Peers]":
    """Peers as of `ringmain_peer` that all tests of a module share: they are ended after the last of them.

    Make the peer in a fixture of your own of that scope. Its `wait` tells of one connection after another, whichever
    test has made it, so let each test wait for its own. Of pytest-xdist each worker has peers of its own.
    """
    yield from _peers()


@pytest.fixture(scope="session")
def ringmain_session_peer() -> "Iterator[Peers]":
    """Peers that all tests of a run share, or of a worker of pytest-xdist. See `ringmain_module_peer`."""
    yield from _peers()


def _peers() -> "Iterator[Peers]":
    from ringmain.testing import Peers

    peers = Peers()
    try:
        yield peers
    finally:
        peers.close()


class _Alone:
    @pytest.fixture
    def ringmain_throughput(self, request: pytest.FixtureRequest, ringmain_peer: "Peers") -> "Iterator[Throughput]":
        """Measure your own receiver or sender: GB/s, and CPU seconds for each GB. See `ringmain.testing.Throughput`.

        ringmain_throughput.receive(receiver) calls receiver(peer), which returns how many bytes it has received
        ringmain_throughput.send(sender) calls sender(peer), which returns how many bytes it has sent
        """
        yield from _throughput(request, ringmain_peer, None)


class _WithBenchmark:
    # Asked for by its name, not on demand: --benchmark-only and --benchmark-skip go by the names of fixtures.
    @pytest.fixture
    def ringmain_throughput(
        self, request: pytest.FixtureRequest, ringmain_peer: "Peers", benchmark: "Benchmark"
    ) -> "Iterator[Throughput]":
        """Measure your own receiver or sender, in rounds of pytest-benchmark. See `ringmain.testing.Throughput`.

        ringmain_throughput.receive(receiver) calls receiver(peer), which returns how many bytes it has received
        ringmain_throughput.send(sender) calls sender(peer), which returns how many bytes it has sent
        """
        yield from _throughput(request, ringmain_peer, benchmark)


def _throughput(
    request: pytest.FixtureRequest, peers: "Peers", benchmark: "Benchmark | None"
) -> "Iterator[Throughput]":
    from ringmain.testing import Throughput

    throughput = Throughput(peers, benchmark)
    yield throughput
    if throughput.measurement is not None:
        request.node.user_properties.append((_PROPERTY, str(throughput.measurement)))


def pytest_configure(config: pytest.Config) -> None:
    """Choose the fixture by whether pytest-benchmark is there, under whichever name it was loaded."""
    with_benchmark = config.getoption("benchmark_skip", None) is not None
    config.pluginmanager.register(_WithBenchmark() if with_benchmark else _Alone(), "ringmain-throughput")


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark's raises when a comparison has failed
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was measured."""
    lines = [
        f"{report.nodeid}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _PROPERTY and report.when == "teardown"
    ]
    if lines:
        terminalreporter.section("ringmain throughput", sep="-")
        for line in lines:
            terminalreporter.write_line(line)
