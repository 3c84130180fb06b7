"""`ringmain bench nats://...`: messages into a stream of a real server and out of it again, and what can go wrong."""

import json
import signal
import subprocess
from typing import Any

import peers
import pytest
from brokers import Broker
from measuring import checked, measured

SUBJECTS = ["events.>"]
SIZE = 3_000_001


def consumers(broker: Broker) -> list[str]:
    async def names(js: Any) -> list[str]:
        return [it.name for it in await js.consumers_info("EVENTS")]

    found: list[str] = broker.run(names)
    return found


def test_what_is_published_is_stored_and_pulled(broker: Broker) -> None:
    broker.publish("events.bench", b"of somebody else")  # neither counted nor taken away
    result = measured(broker.url("events.bench"), "-n", SIZE, "-l", "100000")
    publish, pull = result["tests"]["publish"], result["tests"]["pull"]
    assert publish["end"]["sum_sent"]["bytes"] == pull["end"]["sum_received"]["bytes"] == SIZE
    assert publish["end"]["sum_sent"]["records"] == pull["end"]["sum_received"]["records"] == 31
    for test, reverse in ((publish, 0), (pull, 1)):
        assert sum(it["sum"]["bytes"] for it in test["intervals"]) == SIZE
        assert test["verdict"] == "ended"
        assert test["start"]["connected"][0]["remote_port"] == broker.port
        assert (test["start"]["test_start"]["protocol"], test["start"]["test_start"]["reverse"]) == ("NATS", reverse)
        assert test["end"]["host"]["cpu_total_seconds"] > 0
    assert consumers(broker) == []

    async def state(js: Any) -> Any:
        return (await js.stream_info("EVENTS")).state

    assert broker.run(state).messages == 32


def test_people_and_readers_of_events_get_theirs(broker: Broker) -> None:
    for form in ((), ("--json-stream",)):
        command = [*peers.RINGMAIN, "bench", broker.url("events.bench"), "-n", "1M", *form]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        if form:
            events = [json.loads(line) for line in lines]
            told = [(it["event"], it["test"]) for it in events if it["event"] in ("start", "end")]
            assert told == [("start", "publish"), ("end", "publish"), ("start", "pull"), ("end", "pull")]
            checked(json.dumps(events[-1]["data"]))
        else:
            assert lines[0] == "publish"
            assert "pull" in lines
            assert [line.split(":")[0] for line in lines if line.endswith("plain: ended")] == ["publish", "pull"]
            assert [line.split()[0] for line in lines if line.startswith(("sent", "received"))] == ["sent", "received"]
            assert max(map(len, lines)) <= 80


def test_a_rate_is_kept_for_a_time(broker: Broker) -> None:
    result = measured(broker.url("events.bench"), "-t", "500ms", "-l", "10000", "-L", "1M")
    sent = result["tests"]["publish"]["end"]["sum_sent"]
    assert 0 < sent["bytes"] <= (1 << 20) * (sent["seconds"] + 0.1) + 10_000


def test_a_server_that_is_lost_on_the_way_costs_no_message(bench: peers.Bench, broker: Broker) -> None:
    options = ("bench", broker.url("events.bench"), "-n", "2M", "-l", "10000", "-L", "1M", "--json", "-v")
    program = bench.ringmain(*options, stdout=subprocess.PIPE)
    peers.eventually(lambda: broker.stored() > 0, "the first messages")
    broker.kill()
    broker.start()
    # What others say meanwhile does not count, whatever it is.
    broker.publish("events.bench", b"others", headers=[{"Ringmain-Connection": "x", "Ringmain-Offset": "x"}])
    assert program.wait() == 0, program.stderr
    assert program.process.stdout is not None
    tests = checked(program.process.stdout.read().decode())["tests"]
    assert tests["pull"]["end"]["sum_received"]["bytes"] == 2 << 20


def test_a_signal_ends_it_and_leaves_no_consumer(bench: peers.Bench, broker: Broker) -> None:
    options = ("bench", broker.url("events.bench"), "-t", "1h", "-L", "1M", "--json")
    program = bench.ringmain(*options, stdout=subprocess.PIPE)
    peers.eventually(lambda: broker.stored() > 0, "the first messages")
    program.signal(signal.SIGINT)
    assert program.wait() == 130
    assert program.process.stdout is not None
    assert checked(program.process.stdout.read().decode(), 130) == {"error": "interrupted"}
    assert program.stderr == ""
    assert consumers(broker) == []


def test_a_stream_is_made_for_a_trial_only_where_that_was_asked_for(bench: peers.Bench) -> None:
    broker = Broker(bench)
    assert "--create-stream" in measured(broker.url("trial"), "-n", "1M", code=78)["error"]
    result = measured(broker.url("trial"), "-n", "1M", "--create-stream", "TRIAL")
    assert result["tests"]["pull"]["end"]["sum_received"]["bytes"] == 1 << 20


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-P", "2"], 2, "--parallel with nats://"),
        (["-R"], 2, "--reverse with nats://"),
        (["--save-baseline", "x"], 2, "--save-baseline with nats://"),
        (["--report", "x"], 2, "--report with nats://"),
        (["-t", "1s", "-n", "1M"], 2, "--time with --bytes"),
        (["-l", "2M"], 2, "--message-size 2097152: a message of the stream EVENTS has"),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, list) else "",
)
def test_what_makes_no_sense_is_one_line(broker: Broker, arguments: list[str], code: int, words: str) -> None:
    assert words in measured(broker.url("events.bench"), *arguments, code=code)["error"]


def test_a_server_that_is_not_there_is_one_line() -> None:
    assert "connection refused" in measured(f"nats://127.0.0.1:{peers.free_port()}/events", code=7)["error"]
    assert "braces" in measured("nats://127.0.0.1:1/events.{peer}", code=2)["error"]
    for option in (("--credentials", "x"), ("--create-stream", "X")):
        assert "without nats://" in measured("tcp://127.0.0.1:1", *option, code=2)["error"]
