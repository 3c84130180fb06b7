"""The benchmarks measure what they say: every contender moves every byte. How fast is not looked at."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import peers
import pytest

SOURCES = Path(__file__).parent.parent
if not (SOURCES / "benchmarks" / "c").exists():
    pytest.skip("the benchmarks are not beside these tests", allow_module_level=True)
sys.path.insert(0, str(SOURCES))

from benchmarks import logs, others, transfers  # noqa: E402
from benchmarks.bars import BARS, bars_table, verdicts  # noqa: E402
from benchmarks.bench import Bench  # noqa: E402
from benchmarks.benches import BENCHES, IDLE, PING_PONG, RELAY_LATENCY, STALLED, START  # noqa: E402
from benchmarks.crowds import IDLE_MANY, QUIET  # noqa: E402
from benchmarks.plots import draw, picture  # noqa: E402
from benchmarks.tables import table  # noqa: E402
from benchmarks.workshop import BenchError, Workshop  # noqa: E402

STREAMS = [bench for bench in BENCHES.values() if bench.measure is transfers.measure and bench.compared]
PAIRS = [pytest.param(bench, c, id=f"{bench.name}-{c.name}") for bench in STREAMS for c in bench.contenders]
SIZE = 3_000_000  # no multiple of anything


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop() as it:
        yield it


def need(workshop: Workshop, bench: Bench, contender: transfers.Contender) -> None:
    missing = workshop.lacks(contender.command, tls=bench.shape.tls)
    if missing == "rsyslogd":
        pytest.skip("rsyslogd is missing; installing it starts a service, so that is left to you")
    if missing and missing == contender.command.split()[0]:
        peers.need(missing)
    elif missing:
        pytest.skip(f"{missing} is missing")


@pytest.mark.parametrize(("bench", "contender"), PAIRS)
def test_every_contender_moves_every_byte(workshop: Workshop, bench: Bench, contender: transfers.Contender) -> None:
    need(workshop, bench, contender)
    transfers.compare(workshop, bench.shape, contender, SIZE)


@pytest.mark.parametrize("bench", STREAMS, ids=lambda bench: bench.name)
def test_a_measured_transfer_tells_what_it_took(workshop: Workshop, bench: Bench) -> None:
    (contender,) = (each for each in bench.contenders if each.name == "ringmain")
    need(workshop, bench, contender)
    sample = bench.measure(workshop, bench.shape, replace(contender, size=0.05))
    assert {"GB/s", "CPU s/GB", "peak MiB", "waits/GB"} <= set(sample)
    assert contender.server or {"reads/GB", "read KiB"} <= set(sample)
    assert all(value >= 0 for value in sample.values())


@pytest.mark.parametrize(
    "bench", [IDLE, PING_PONG, RELAY_LATENCY, START, STALLED, IDLE_MANY, QUIET], ids=lambda bench: bench.name
)
def test_what_is_no_stream_can_be_measured(workshop: Workshop, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "_QUIET_LINES", 20)
    for contender in bench.contenders:
        need(workshop, bench, contender)
    assert bench.measure(workshop, bench.shape, bench.contenders[-1])


@pytest.mark.parametrize(
    ("bench", "contender"), [pytest.param(it, c, id=f"{it.name}-{c.name}") for it in logs.LOGS for c in it.contenders]
)
def test_every_contender_leaves_every_byte_in_a_log(
    workshop: Workshop, bench: Bench, contender: transfers.Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nats")
    pytest.importorskip("pyarrow")
    need(workshop, bench, contender)
    monkeypatch.setattr(logs, "_OUTAGE", 0.5)
    # Of its clients the kernel alone takes a megabyte and a half each, while nobody reads.
    size = 0.3 if bench is logs.LOG_OUTAGE else 0.003
    sample = bench.measure(workshop, bench.shape, replace(contender, size=size))
    assert all(value >= 0 for value in sample.values())


def test_a_byte_that_is_missing_in_a_log_is_noticed(workshop: Workshop) -> None:
    pytest.importorskip("nats")
    contender = logs.LOG.contenders[0]
    need(workshop, logs.LOG, contender)
    short = replace(contender, command=contender.command.replace("{size}", "1000000"), size=0.003)
    with pytest.raises(BenchError, match="1000000"):
        logs.publishing(workshop, logs.LOG.shape, short)


def test_a_lost_byte_is_noticed(workshop: Workshop) -> None:
    bench = BENCHES["pipe"]
    lossy = transfers.Contender("lossy", "{python} tests/lossy.py {port}", 0.03)
    with pytest.raises(BenchError):
        transfers.measure(workshop, bench.shape, lossy)
    with pytest.raises(BenchError):
        transfers.compare(workshop, bench.shape, lossy, SIZE)


def test_a_full_run_has_a_verdict_for_every_bar(tmp_path: Path) -> None:
    sample = {
        "GB/s": 2.0,
        "CPU s/GB": 0.1,
        "net CPU s/GB": 0.1,
        "median µs": 30.0,
        "slowest µs": 100.0,
        "ms": 50.0,
        "peak MiB": 20.0,
        "p99 µs": 300.0,
        "block KiB": 100.0,
        "added MiB": 1.0,
    }
    results = {
        "benches": {
            bench.name: {
                "title": bench.title,
                "reference": bench.reference,
                "sizes": {},
                "skipped": {"absent": "it is missing"},
                "failed": {},
                "samples": {contender.name: [sample, sample] for contender in bench.contenders},
            }
            for bench in BENCHES.values()
        }
    }
    rows = verdicts(json.loads(json.dumps(results)))
    assert len(rows) == len(BARS)
    assert all(row["passed"] is not None for row in rows)
    assert "MISS" in bars_table(rows)
    assert "1.00x" in table("pipe", results["benches"]["pipe"])
    for path in draw(results, tmp_path / "plots"):
        assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
    words = [it.text for it in ElementTree.fromstring(picture(results)).iter() if it.text and it.text.strip()]
    assert [it for it in words if it in ("ringmain", "socat", "nc", "ncat")] == ["ringmain", "socat", "nc", "ncat"] * 2
