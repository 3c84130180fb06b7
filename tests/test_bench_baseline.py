"""The gate of `ringmain bench`: rounds that alternate with a reference, a baseline, and verdicts with exit codes."""

import json
import random
from pathlib import Path
from typing import Any

import peers
import pytest
from measuring import measured, serving

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
    arguments = ("--baseline", path, "--noise-threshold", "95%", "--fail-on-regression")
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
    result = measured(endpoint, "--baseline", path, "--noise-threshold", "95%", "--fail-on-regression", *QUICK, code=1)
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
    arguments = ("--baseline", path, "--fail-on-regression")
    assert measured(endpoint, *arguments, *QUICK, code=75)["verdict"] == "inconclusive"
    # It only counts where that was asked for.
    assert measured(endpoint, "--baseline", path, *QUICK)["verdict"] == "inconclusive"


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
