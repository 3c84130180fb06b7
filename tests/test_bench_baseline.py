"""The gate of `ringmain bench`: rounds that alternate with a reference, a baseline, and verdicts with exit codes."""

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from measuring import checked, measured, serving
from streams import server_at

from ringmain.bench.gate import Gate
from ringmain.bench.loopback import loopback
from ringmain.bench.plan import Plan
from ringmain.bench.rounds import compare

QUICK = ("-t", "100ms", "-O", "50ms", "--rounds", "3")


def saved(endpoint: str, folder: Path, *arguments: Any) -> Path:
    """Measure and save a baseline."""
    path = folder / "baseline.json"
    result = measured(endpoint, "--save-baseline", path, *arguments)
    assert len(result["rounds"]) == 3
    assert "verdict" not in result
    return path


def test_unchanged_code_is_no_regression(bench: peers.Bench, tmp_path: Path) -> None:
    endpoint = serving(bench)
    path = saved(endpoint, tmp_path, *QUICK)
    # On a machine that others use, two runs of the same code differ: this much they do not.
    arguments = ("--baseline", path, "--noise-threshold", "95%", "--fail-on", "inconclusive")
    result = measured(endpoint, *arguments, *QUICK)
    assert result["verdict"] == result["comparison"]["verdict"] == "ok"
    for row in result["comparison"]["figures"].values():
        assert row["low"] <= row["ratio"] <= row["high"]
    assert result["comparison"]["baseline_rounds"] == json.loads(path.read_text())["tests"][""]["rounds"]


@pytest.mark.parametrize("figure", ["gb_per_second", "cpu_seconds_per_gb"])
def test_what_is_far_worse_than_the_baseline_in_one_figure_is_a_regression(
    bench: peers.Bench, tmp_path: Path, figure: str
) -> None:
    endpoint = serving(bench)
    path = saved(endpoint, tmp_path, *QUICK)
    baseline = json.loads(path.read_text())
    # So much better was it then that no noise of this machine hides it.
    better = 10_000 if figure == "gb_per_second" else 1 / 10_000
    for it in baseline["tests"][""]["rounds"]:
        it["ringmain"][figure] *= better
    path.write_text(json.dumps(baseline))
    result = measured(
        endpoint, "--baseline", path, "--noise-threshold", "95%", "--fail-on", "inconclusive", *QUICK, code=1
    )
    assert result["verdict"] == "regression"
    assert result["comparison"]["figures"][figure]["verdict"] == "regression"  # a busy machine decides about the other


def test_figures_that_are_all_over_the_place_are_inconclusive(bench: peers.Bench, tmp_path: Path) -> None:
    endpoint = serving(bench)
    path = saved(endpoint, tmp_path, *QUICK)
    baseline = json.loads(path.read_text())
    for number, it in enumerate(baseline["tests"][""]["rounds"]):
        for figure in it["ringmain"]:
            it["ringmain"][figure] *= (0.01, 1, 100)[number]
    path.write_text(json.dumps(baseline))
    arguments = ("--baseline", path, "--fail-on", "inconclusive")
    assert measured(endpoint, *arguments, *QUICK, code=75)["verdict"] == "inconclusive"
    # It only counts where that was asked for.
    arguments = ("--baseline", path, "--fail-on", "regression")
    assert measured(endpoint, *arguments, *QUICK)["verdict"] == "inconclusive"


def test_a_baseline_of_another_machine_or_of_other_options_is_refused_unless_forced(
    bench: peers.Bench, tmp_path: Path
) -> None:
    endpoint = serving(bench)
    path = saved(endpoint, tmp_path, *QUICK)
    compared = ("--baseline", path, "--noise-threshold", "95%")
    other = measured(endpoint, *compared, *QUICK, "-P", "2", code=2)["error"]
    assert "parallel 1 there, 2 here" in other
    assert "--force" in other
    assert "seconds 0.1 there, 0.2 here" in measured(endpoint, *compared, *QUICK, "-t", "200ms", code=2)["error"]
    baseline = json.loads(path.read_text())
    baseline["machine"]["cpu"] = "Z80"
    path.write_text(json.dumps(baseline))
    assert "cpu 'Z80' there" in measured(endpoint, *compared, *QUICK, code=2)["error"]
    assert measured(endpoint, *compared, *QUICK, "--force")["verdict"] == "ok"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"ringmain_baseline": 0}',
        '{"ringmain_baseline": 1}',
        '{"ringmain_baseline": 1, "machine": {}, "tests": {"": {}}}',
        '{"ringmain_baseline": 1, "machine": {}, "tests": {"": {"settings": {}, "rounds": [{}]}}}',
        '{"ringmain_baseline": 1, "machine": {}, "tests": {"": {"settings": {}, "rounds": []}}}',
        '{"ringmain_baseline": 1, "machine": {}, "tests": {"": {"settings": {}, "rounds": ['
        '{"ringmain": {"gb_per_second": NaN, "cpu_seconds_per_gb": 1}, '
        '"reference": {"gb_per_second": 1, "cpu_seconds_per_gb": 1}}]}}}',
        '{"ringmain_baseline": 1, "machine": {}, "tests": {"receive plain to blocks": {}}}',
    ],
)
def test_what_is_no_baseline_is_one_line_before_anything_is_measured(tmp_path: Path, text: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    error = measured("tcp://127.0.0.1:1", "--baseline", path, "--force", code=26)["error"]
    assert error.startswith(f"baseline {path}: ")
    assert "--save-baseline" in error or "the same options" in error


def test_a_baseline_that_cannot_be_written_is_one_line_before_anything_is_measured(tmp_path: Path) -> None:
    error = measured("tcp://127.0.0.1:1", "--save-baseline", tmp_path / "none" / "file", code=23)["error"]
    assert "choose another --save-baseline" in error
    assert "refused" in measured("tcp://127.0.0.1:1", "--save-baseline", tmp_path / "file", code=7)["error"]
    assert not (tmp_path / "file").exists()  # nothing was measured


def rounds(throughput: float, cost: float, spread: float, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)

    def noisy(value: float) -> float:
        return value * chance.uniform(1 - spread, 1 + spread)

    return [
        {
            "ringmain": {"gb_per_second": noisy(throughput), "cpu_seconds_per_gb": noisy(cost)},
            "reference": {"gb_per_second": noisy(2.0), "cpu_seconds_per_gb": noisy(0.4)},
        }
        for _ in range(10)
    ]


def test_verdicts_tell_better_from_worse_and_noise_from_both() -> None:
    before = rounds(4.0, 0.1, 0.01, 1)

    def verdicts(throughput: float, cost: float, spread: float = 0.01) -> tuple[str, str, str]:
        it = compare(before, rounds(throughput, cost, spread, 2), 0.05)
        figures = it["figures"]
        return (figures["gb_per_second"]["verdict"], figures["cpu_seconds_per_gb"]["verdict"], it["verdict"])

    assert verdicts(4.0, 0.1) == ("ok", "ok", "ok")
    assert verdicts(8.0, 0.05) == ("ok", "ok", "ok")
    assert verdicts(3.5, 0.1) == ("regression", "ok", "regression")
    assert verdicts(4.0, 0.12) == ("ok", "regression", "regression")
    assert verdicts(3.8, 0.1) == ("inconclusive", "ok", "inconclusive")
    assert verdicts(4.0, 0.1, spread=0.5)[2] == "inconclusive"


def test_a_machine_that_is_slower_today_is_no_regression() -> None:
    before, now = rounds(4.0, 0.1, 0.01, 1), rounds(4.0, 0.1, 0.01, 2)
    for it in now:
        for part in it.values():
            part["gb_per_second"] /= 3
            part["cpu_seconds_per_gb"] *= 3
    assert compare(before, now, 0.05)["verdict"] == "ok"


def test_unchanged_noise_is_never_called_a_regression() -> None:
    verdicts = [compare(rounds(4.0, 0.1, 0.05, seed), rounds(4.0, 0.1, 0.05, seed + 100), 0.05) for seed in range(30)]
    assert [it["verdict"] for it in verdicts].count("regression") == 0


@pytest.mark.parametrize("way", ["send plain from", "send TLS from", "receive plain to", "receive TLS to"])
def test_what_rounds_are_compared_with_moves_bytes_to_the_end(run: Any, way: str) -> None:
    async def main() -> None:
        async with loopback(Plan(seconds=0.1, engine="reference")) as tests:
            plan, measure = tests[f"{way} blocks"]
            result = await measure(plan)
        assert sum(result.sender["totals"]) == sum(result.receiver["totals"]) > 0
        assert result.local["reads" if way.startswith("receive") else "writes"] > 0

    run(main())


# --- load tests of other people's programs ---

ROUNDS = ("--rounds", "3")
LINES = b"".join(b"%d %s\n" % (number, b"x" * (number % 97)) for number in range(3000))


def receiving(bench: peers.Bench) -> str:
    """Start a receiver that serves one client after another; return where."""
    _, port = bench.listening("load", "--output", "/dev/null")
    return f"tcp://127.0.0.1:{port}"


def better(path: Path, factor: float) -> None:
    """Let the throughput of a baseline be so many times what it was."""
    baseline = json.loads(path.read_text())
    [test] = baseline["tests"].values()
    for it in test["rounds"]:
        it["ringmain"]["gb_per_second"] *= factor
    path.write_text(json.dumps(baseline))


def test_a_receiver_that_has_not_changed_is_no_regression_and_a_slower_one_is(
    bench: peers.Bench, tmp_path: Path
) -> None:
    path, endpoint = tmp_path / "baseline.json", receiving(bench)
    test = ("save", endpoint, "--input", bench.file(LINES), "-t", "100ms", *ROUNDS)
    kept = measured(*test, "--save-baseline", path)
    assert len(kept["rounds"]) == 3
    assert "comparison" not in kept
    assert kept["verdict"] == "ended"
    assert list(json.loads(path.read_text())["tests"]) == ["save"]
    compared = ("--baseline", path, "--noise-threshold", "95%", "--fail-on", "inconclusive")
    comparison = measured(*test, *compared)["comparison"]
    assert comparison["verdict"] == "ok"
    assert list(comparison["figures"]) == ["gb_per_second"]
    assert comparison["baseline_rounds"] == kept["rounds"]
    better(path, 10_000)
    assert measured(*test, *compared, code=1)["comparison"]["verdict"] == "regression"
    assert measured(*test, *compared[:-2])["comparison"]["verdict"] == "regression"  # nobody asked for a failure
    text = subprocess.run([*peers.RINGMAIN, "bench", *map(str, (*test, *compared))], capture_output=True, text=True)
    assert text.returncode == 1
    assert text.stdout.endswith("\n\nverdict: regression\n")


@pytest.mark.parametrize("way", ["listen", "connect"])
def test_a_sender_is_tested_in_rounds_too(bench: peers.Bench, tmp_path: Path, way: str) -> None:
    path = tmp_path / "baseline.json"
    options = ("--save-baseline", path, *ROUNDS, "--json")
    if way == "connect":
        _, port = bench.listening("save", "--listen", "--input", str(bench.file(LINES * 100)))
        result = measured("load", "--connect", f"127.0.0.1:{port}", *options[:-1])
    else:
        program, port = bench._listening("bench", "load", *options, "127.0.0.1:0", stdout=subprocess.PIPE)
        for _ in range(3):  # the sender comes again for each of them
            with peers.connect(port) as sock:
                sock.sendall(LINES * 100)
        assert program.wait() == 0
        assert program.process.stdout is not None
        result = checked(program.process.stdout.read().decode())
    assert result["end"]["sum_received"]["bytes"] == len(LINES) * 100
    assert len(result["rounds"]) == len(json.loads(path.read_text())["tests"]["load"]["rounds"]) == 3


def test_a_load_test_over_tls_is_compared_with_tls(
    bench: peers.Bench, tmp_path: Path, certificates: Certificates
) -> None:
    _, port = bench.listening("load", "--output", "/dev/null", "--tls", "--certfile", certificates.server)
    path = tmp_path / "baseline.json"
    test = ("save", f"tcps://127.0.0.1:{port}", "--cafile", certificates.ca, "--server-name", "localhost")
    result = measured(*test, "--input", bench.file(LINES), "-t", "50ms", *ROUNDS, "--save-baseline", path)
    assert result["start"]["tls"]["version"] == "TLSv1.3"
    assert json.loads(path.read_text())["tests"]["save"]["settings"]["tls"] is True


def test_a_baseline_of_another_load_test_is_refused(bench: peers.Bench, tmp_path: Path) -> None:
    path, endpoint = tmp_path / "baseline.json", receiving(bench)
    test = ("save", endpoint, "--input", bench.file(LINES), *ROUNDS)
    measured(*test, "-t", "50ms", "--save-baseline", path)
    longer = measured(*test, "-t", "60ms", "--baseline", path, code=2)["error"]
    assert "duration 0.05 there, 0.06 here" in longer
    other = ("save", endpoint, "--input", bench.file(LINES[:-9], "other"), "-t", "50ms", *ROUNDS, "--baseline", path)
    assert f"input {len(LINES)} there, {len(LINES) - 9} here" in measured(*other, code=2)["error"]
    error = measured("load", "127.0.0.1:0", *ROUNDS, "--baseline", path, code=26)["error"]
    assert "it has no results for these options" in error


def test_a_round_that_fails_ends_a_load_test_with_its_figures(bench: peers.Bench, tmp_path: Path) -> None:
    port, path = peers.free_port(), tmp_path / "baseline.json"
    bench.start([peers.need("socat"), "-u", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr", "OPEN:/dev/null"])
    peers.wait_for_port(port)
    options = ("--input", bench.file(LINES), "-t", "50ms", *ROUNDS, "--save-baseline", path)
    # It serves one client only, so that nobody is there for the second round.
    assert "connection refused" in measured("save", f"127.0.0.1:{port}", *options, code=7)["error"]
    with server_at() as listener:
        program = bench.ringmain(
            *("bench", "save", f"127.0.0.1:{listener.getsockname()[1]}", *options, "--json"), stdout=subprocess.PIPE
        )
        peers.close_with_reset(listener.accept()[0])
        assert program.wait() == 55
    assert program.process.stdout is not None
    assert checked(program.process.stdout.read().decode(), 55)["verdict"] == "reset"
    assert not path.exists()


def test_a_verdict_fails_a_run_only_where_that_was_asked_for() -> None:
    codes = {
        fail_on: [gate(fail_on).exit_code(verdict) for verdict in (None, "ok", "inconclusive", "regression")]
        for fail_on in (None, "regression", "inconclusive")
    }
    assert codes == {None: [0, 0, 0, 0], "regression": [0, 0, 0, 1], "inconclusive": [0, 0, 75, 1]}


def gate(fail_on: str | None) -> Gate:
    return Gate(rounds=3, save_baseline=None, baseline="b", noise_threshold=0.05, fail_on=fail_on, force=False)


@pytest.mark.parametrize("command", [(), ("save", "--input", __file__), ("load",)], ids=["", "save", "load"])
def test_to_fail_on_a_verdict_needs_a_baseline(command: tuple[str, ...]) -> None:
    error = measured(*command, "tcp://127.0.0.1:1", "--fail-on", "regression", code=2)["error"]
    assert error.startswith("--fail-on: ")
    assert "add --baseline" in error
