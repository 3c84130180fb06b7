"""`ringmain bench`: what is measured, how it is told, and what becomes of bad arguments."""

import json
import os
import random
import re
import subprocess
import types

import iperf3
import jsonschema
import peers
import pytest
from conftest import Certificates
from hypothesis import example, given
from hypothesis import strategies as st
from measuring import SCHEMA, measured, serving

from ringmain.bench import engines
from ringmain.bench.engines import Budget
from ringmain.bench.meter import split
from ringmain.bench.plan import Plan, measured_at
from ringmain.bench.streams import evenly
from ringmain.endpoint import Endpoint
from ringmain.errors import UsageError

SIZE = 64_000_001
WAYS = [(), ("--reverse",), ("--parallel", "3"), ("--parallel", "2", "--processes", "--reverse")]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("scheme", ["tcp", "tcps"])
def test_as_many_bytes_as_were_asked_for_are_counted_at_both_ends(
    bench: peers.Bench, certificates: Certificates, scheme: str, way: tuple[str, ...]
) -> None:
    tls = ["--certfile", certificates.server] if scheme == "tcps" else []
    trust = ["--cafile", certificates.ca, "--server-name", "localhost"] if scheme == "tcps" else []
    result = measured(serving(bench, *tls, scheme=scheme), "-n", SIZE, *way, *trust)
    start, end = result["start"], result["end"]
    assert end["sum_sent"]["bytes"] == end["sum_received"]["bytes"] == SIZE
    for side in ("sender", "receiver"):
        assert sum(stream[side]["bytes"] for stream in end["streams"]) == SIZE
    assert sum(interval["sum"]["bytes"] for interval in result["intervals"]) == SIZE
    assert len(start["connected"]) == len(end["streams"]) == start["test_start"]["num_streams"]
    receiver, sender = (end["host"], end["remote"]) if "--reverse" in way else (end["remote"], end["host"])
    assert receiver["reads"] >= receiver["blocks"] > 0 == receiver["writes"]
    assert receiver["average_block"] == SIZE / receiver["blocks"]
    assert sender["writes"] > 0 == sender["reads"]
    assert 0 < receiver["cpu_seconds_per_gb"] == receiver["cpu_total_seconds"] / SIZE * 1e9
    assert (start["tls"] is not None and start["tls"]["version"] == "TLSv1.3") == (scheme == "tcps")


def test_iperf3s_readers_read_the_result(bench: peers.Bench) -> None:
    result = measured(serving(bench), "-t", "300ms", "-P", "2", "--reverse")
    read = iperf3.TestResult(json.dumps(result))
    assert read.error is None
    assert (read.type, read.reverse, read.protocol, read.num_streams) == ("client", True, "TCP", 2)
    assert read.sent_bytes == result["end"]["sum_sent"]["bytes"] > 0
    assert read.received_MB_s > 0
    assert read.local_cpu_total == result["end"]["cpu_utilization_percent"]["host_total"]
    assert read.remote_host == "127.0.0.1"
    assert iperf3.TestResult(json.dumps(measured("tcp://127.0.0.1:1", code=7))).error.startswith("connect to 127.0.0.1")


def test_names_are_iperf3s(bench: peers.Bench) -> None:
    iperf3_port = peers.free_port()
    bench.start([peers.need("iperf3"), "--server", "--one-off", "--port", str(iperf3_port)])
    peers.wait_for_port(iperf3_port)
    command = ["iperf3", "--client", "127.0.0.1", "--port", str(iperf3_port), "--bytes", "4M", "--parallel", "2"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300, check=True)
    theirs, ours = json.loads(done.stdout), measured(serving(bench), "-n", "4M", "-P", "2")
    for path, own in (
        (("start",), {"machine", "tls"}),
        (("start", "timestamp"), set()),
        (("start", "connecting_to"), set()),
        (("start", "connected", 0), set()),
        (("start", "test_start"), {"processes", "through", "target_bitrate"}),  # the last: only newer ones have it
        (("intervals", 0, "streams", 0), set()),
        (("intervals", 0, "sum"), set()),
        (("end",), {"host", "remote"}),
        (("end", "streams", 0, "sender"), set()),
        (("end", "sum_sent"), set()),
        (("end", "sum_received"), set()),
        (("end", "cpu_utilization_percent"), set()),
    ):
        known, named = theirs, ours
        for step in path:
            known, named = known[step], named[step]
        assert set(named) - set(known) == own - set(known), path
    assert ours["end"]["sum_sent"]["bytes"] == 4 << 20


def test_the_warm_up_is_left_out(bench: peers.Bench) -> None:
    result = measured(serving(bench), "-t", "400ms", "--omit", "200ms")
    warm_up = [it["sum"] for it in result["intervals"] if it["sum"]["omitted"]]
    rest = [it["sum"]["bytes"] for it in result["intervals"] if not it["sum"]["omitted"]]
    host = result["end"]["host"]
    assert len(warm_up) == 1
    assert warm_up[0]["bytes"] > 0
    assert host["total_bytes"] == warm_up[0]["bytes"] + host["bytes"]
    assert result["end"]["sum_sent"]["bytes"] == host["bytes"] == sum(rest)
    assert len(rest) > 3


def test_a_limited_sender_never_exceeds_its_rate(bench: peers.Bench) -> None:
    rate = 5 << 20
    for reverse in ((), ("--reverse",)):
        result = measured(serving(bench), "-n", "2M", "--limit", rate, "-P", "2", *reverse)
        sent = result["end"]["sum_sent"]
        assert sent["bytes"] == 2 << 20
        # What the bucket holds, and a message more of each stream, may go out at once.
        assert sent["bytes"] <= rate * (sent["seconds"] + 0.1) + 2 * result["start"]["test_start"]["blksize"]


def test_a_budget_gives_no_more_than_its_rate_and_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "time", types.SimpleNamespace(monotonic=lambda: 1000.0))  # no time passes meanwhile
    budget = Budget(Plan(seconds=None, size=10_500, rate=1_000_000, message_size=1000))
    taken, waited = [], 0.0
    while (message := budget.take())[0]:
        taken.append(message[0])
        waited = max(waited, message[1])
    assert sum(taken) == 10_500
    assert taken[-1] == 500
    assert waited == pytest.approx(0.01)  # the eleventh message waits for ten others of a millisecond each


def test_the_writes_are_of_the_size_that_was_asked_for(bench: peers.Bench) -> None:
    result = measured(serving(bench), "-n", "4M", "-l", "64K", "-R")
    assert result["end"]["remote"]["writes"] >= 64
    assert result["start"]["test_start"]["blksize"] == 1 << 16


def test_events_end_with_the_whole_result(bench: peers.Bench) -> None:
    command = [*peers.RINGMAIN, "bench", serving(bench), "-t", "400ms", "-P", "2", "--processes", "--json-stream"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["start", "result"]
    result = events[-1]["data"]
    jsonschema.validate(result, SCHEMA)
    intervals = [event["data"] for event in events[1:-1]]
    assert {event["event"] for event in events[1:-1]} == {"interval"}
    assert 1 < len(intervals) <= len(result["intervals"])
    numbers = [[stream["socket"] for stream in it["streams"]] for it in (*intervals, *result["intervals"])]
    assert numbers == [[1, 2]] * len(numbers)
    assert [it["socket"] for it in result["start"]["connected"]] == [1, 2]
    assert [it["sum"]["bytes"] for it in intervals] == [
        it["sum"]["bytes"] for it in result["intervals"][: len(intervals)]
    ]


def test_loopback_measures_both_ways_plain_and_tls_to_blocks_and_pipes() -> None:
    result = measured("-t", "500ms", "--omit", "50ms")
    names = {
        f"{verb} {tls} {to} {through}"
        for verb, to in (("receive", "to"), ("send", "from"))
        for tls in ("plain", "TLS")
        for through in ("blocks", "pipe")
    }
    assert set(result["tests"]) == names
    for name, test in result["tests"].items():
        assert test["end"]["sum_received"]["bytes"] > 0, name
        assert (test["start"]["tls"] is not None) == ("TLS" in name)
        blocks = test["end"]["host"]["blocks"]
        assert (blocks > 0) == (name.startswith("receive") and "plain to pipe" not in name), name


def test_ipv6_is_written_as_it_is_read(bench: peers.Bench) -> None:
    _, port = bench.serving_measurements(host="[::1]")
    command = [*peers.RINGMAIN, "bench", f"tcp://[::1]:{port}", "-n", "1M"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert f"\n[::1]:{port}, plain, 1 stream\n" in done.stdout


def test_people_get_a_table(bench: peers.Bench) -> None:
    command = [*peers.RINGMAIN, "bench", serving(bench), "-n", "10M"]
    environment = {**os.environ, "COLUMNS": "200"}  # a busy machine makes figures that do not fit in 80
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    assert done.stderr == ""
    seconds, result = (part.splitlines() for part in done.stdout.split("\n\n"))
    assert seconds[0].split() == ["seconds", "bytes", "GB/s", "Gbit/s", "retransmits", "RTT", "ms"]
    assert len(seconds) >= 2
    head, _, columns, sent, received, kernel = result
    assert head.endswith("plain, 1 stream")
    assert columns.split()[:3] == ["time", "bytes", "GB/s"]
    assert sent.split()[:1] + sent.split()[3:5] == ["sent", "10.0", "MiB"]
    assert received.split()[:1] + received.split()[3:5] == ["received", "10.0", "MiB"]
    assert re.fullmatch(r"\d+ retransmits, RTT \S+ ms \(\S+ to \S+\), window up to \S+ \w+, \w+", kernel)


BAD = [
    (["--server", "-R"], 2, "--reverse with --server"),
    (["--report", "/nonexistent/out.html"], 23, "choose another --report"),
    (["--server"], 2, " with --server"),
    (["-R"], 2, "--reverse without an ENDPOINT"),
    (["--cafile", "ca.pem"], 2, "--cafile without an ENDPOINT"),
    (["--listen-once"], 2, "--listen-once without --server"),
    (["tcp://127.0.0.1:1", "-t", "1s", "-n", "1M"], 2, "--time with --bytes"),
    (["tcp://127.0.0.1:1", "--fail-on", "regression"], 2, "add --baseline"),
    (["tcp://127.0.0.1:1", "-n", "many"], 2, "is not a size"),
    (["tcp://127.0.0.1:1", "-P", "1000"], 2, "1<=x<=128"),
    (["tcp://127.0.0.1:1", "--noise-threshold", "5"], 2, "is not a percentage"),
    (["tcp://127.0.0.1:1", "--unknown"], 2, "--unknown"),
    (["tcp://127.0.0.1:1", "-n", "1", "-P", "2"], 2, "--bytes 1: out of range; give 2 to 4611686018427387904 bytes"),
    (["tcp://127.0.0.1:1", "-l", "100M"], 2, "--message-size 104857600: out of range; give 1 to 67108864 bytes"),
    (["tcp://127.0.0.1:1", "-t", "1000h"], 2, "--time 3600000: out of range; give 0.001 to 86400 seconds"),
    (["tcp://127.0.0.1:1"], 7, "connection refused"),
    (["non sense"], 2, "non sense"),
    (["http://nonsense"], 2, "http://nonsense"),
    (["8010"], 2, "'8010'"),
    (["tcp://"], 2, "'tcp://'"),
    (["--baseline", "/nonexistent"], 26, "make one with --save-baseline"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(it[0]) for it in BAD])
def test_failures_are_a_line_an_exit_code_and_json(arguments: list[str], code: int, words: str) -> None:
    assert words in measured(*arguments, code=code)["error"]
    command = [*peers.RINGMAIN, "bench", *arguments]
    done = subprocess.run([*command, "--json-stream"], capture_output=True, text=True, timeout=300, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events[-2:]] == ["error", "result"]
    assert words in events[-1]["data"]["error"]
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [["bench"], ["bench", "load", "127.0.0.1:0"]], ids=" ".join)
def test_one_form_of_output_at_a_time(command: list[str]) -> None:
    both = [*peers.RINGMAIN, *command, "--json", "--json-stream"]
    done = subprocess.run(both, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ringmain: --json with --json-stream: ")
    assert "--json with --json-stream" in json.loads(done.stdout.splitlines()[-1])["data"]["error"]


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("localhost", "localhost:5201"),
        ("127.0.0.1", "127.0.0.1:5201"),
        ("tcp://10.0.0.5/", "tcp://10.0.0.5:5201"),
        ("tcps://bench.example.org", "tcps://bench.example.org:5201"),
        ("[::1]", "[::1]:5201"),
        ("tcp://[fe80::1%eth0]", "tcp://[fe80::1%eth0]:5201"),
        ("localhost:80", "localhost:80"),
        ("tcp://localhost:http", "tcp://localhost:http"),
        ("[::1]:80", "[::1]:80"),
    ],
)
def test_a_host_alone_stands_for_iperf3s_port(given: str, endpoint: str) -> None:
    assert measured_at(given, 5201) == Endpoint.parse(endpoint)


def test_a_client_and_a_server_need_no_port(bench: peers.Bench) -> None:
    host = f"127.{os.getpid() % 250}.{random.randrange(250)}.{random.randrange(1, 250)}"  # others have theirs
    port_file = bench.folder / "port"
    bench.ringmain("bench", "--server", host, "--port-file", port_file)
    assert peers.eventually(lambda: port_file.exists() and port_file.read_text(), "the port file") == "5201\n"
    assert measured(host, "-n", "1M")["start"]["connecting_to"] == {"host": host, "port": 5201}


def test_a_load_test_needs_a_port() -> None:
    assert "'localhost'" in measured("load", "--connect", "localhost", code=2)["error"]


# --- several streams ---


def test_streams_are_divided_evenly_between_processes() -> None:
    for streams in range(1, 129):
        for most in (1, 2, 4, 6, 64):
            count = evenly(streams, most)
            assert 1 <= count <= min(streams, most)
            assert streams % count == 0
            assert not any(streams % more == 0 for more in range(count + 1, min(streams, most) + 1))
    assert evenly(4, 0) == 1


@given(
    size=st.integers(128, 1 << 40),
    parallel=st.integers(1, 128),
    data=st.data(),
)
def test_shares_of_a_plan_add_up(size: int, parallel: int, data: st.DataObject) -> None:
    plan = Plan(seconds=None, size=size, rate=size, parallel=parallel)
    count = data.draw(st.sampled_from([it for it in range(1, parallel + 1) if parallel % it == 0]))
    shares = [plan.share(at * (parallel // count), parallel // count) for at in range(count)]
    assert sum(it.size or 0 for it in shares) == sum(it.rate or 0 for it in shares) == size
    assert sum(it.parallel for it in shares) == parallel
    singles = [it.share(at).size or 0 for it in shares for at in range(it.parallel)]
    assert sum(singles) == size
    assert max(singles) - min(singles) <= 1


@pytest.mark.parametrize("scheme", ["tcp", "tcps"])
@pytest.mark.parametrize("way", [(), ("--reverse",), ("--processes",)], ids=["forth", "back", "processes"])
def test_both_ends_mean_the_same_stream(
    bench: peers.Bench, certificates: Certificates, scheme: str, way: tuple[str, ...]
) -> None:
    tls = ["--certfile", certificates.server] if scheme == "tcps" else []
    trust = ["--cafile", certificates.ca, "--server-name", "localhost"] if scheme == "tcps" else []
    end = measured(serving(bench, *tls, scheme=scheme), "-t", "300ms", "-O", "0", "-P", "6", *way, *trust)["end"]
    # Each sends for a time, so that hardly two of them send as much.
    assert [it["sender"]["bytes"] for it in end["streams"]] == [it["receiver"]["bytes"] for it in end["streams"]]


@pytest.mark.parametrize("options", [(), ("-P", "4"), ("-P", "3", "--processes")], ids=" ".join)
@pytest.mark.parametrize("reverse", [(), ("--reverse",)], ids=["forth", "back"])
def test_every_stream_has_the_certificate_whose_fingerprint_was_printed(
    bench: peers.Bench, options: tuple[str, ...], reverse: tuple[str, ...]
) -> None:
    server, port = bench.serving_measurements("--self-signed", scheme="tcps")
    [shown] = re.findall(r"SHA-256 fingerprint ([0-9A-F:]{95})\n", server.stderr)
    endpoint = f"tcps://127.0.0.1:{port}"
    result = measured(endpoint, "-n", "8M", "--fingerprint", shown, *options, *reverse)
    assert result["end"]["sum_received"]["bytes"] == 8 << 20
    other = shown[:-1] + ("0" if shown[-1] != "0" else "1")
    assert "fingerprint" in measured(endpoint, "-n", "8M", "--fingerprint", other, *options, code=60)["error"]
    assert server.stderr.count("fingerprint") == 1


def test_streams_warn_of_nothing_that_was_told(bench: peers.Bench) -> None:
    _, port = bench.serving_measurements("--self-signed", scheme="tcps")
    for options in ((), ("-P", "3"), ("-P", "4")):
        command = [*peers.RINGMAIN, "bench", f"tcps://127.0.0.1:{port}", "-n", "1M", "--insecure", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        assert len(done.stderr.splitlines()) == 1
        assert "--insecure" in done.stderr


def test_a_server_can_be_told_to_serve_once(bench: peers.Bench) -> None:
    server, port = bench.serving_measurements("--listen-once")
    assert "ended" not in measured(f"127.0.0.1:{port}", "-n", "1M")
    assert server.wait() == 0


def test_a_server_reads_no_plan_that_is_none() -> None:
    good = Plan().message()
    assert Plan.read(good) == Plan()
    for name, value in (
        ("parallel", 1 << 20),
        ("parallel", True),
        ("message_size", 1 << 40),
        ("seconds", "1"),
        ("seconds", float("nan")),
        ("size", 5),
        ("rate", 0),
        ("through", "tape"),
        ("engine", None),
        ("reverse", 1),
        ("omit", -1),
        ("seconds", 10**400),
        ("size", 10**400),
        ("rate", -(10**400)),
    ):
        with pytest.raises(UsageError):
            Plan.read({**good, name: value})
    for other in (None, [], {}, {**good, "more": 1}):
        with pytest.raises(UsageError):
            Plan.read(other)


@given(cpu=st.integers(0, 10**12), user=st.integers(0, 10**6), system=st.integers(0, 10**6))
@example(cpu=2_828_048, user=3, system=0)
def test_cpu_time_is_split_without_a_rest(cpu: int, user: int, system: int) -> None:
    of_program, of_kernel = split(cpu / 1e9, user / 1e6, system / 1e6)
    assert of_program >= 0
    assert of_kernel >= 0
    assert of_program + of_kernel == pytest.approx(cpu / 1e9)
    if user + system:
        assert of_program == pytest.approx(cpu / 1e9 * user / (user + system))
