"""The core by itself: what an operation costs in time. Run it with `pytest benchmarks/test_micro.py`."""

from contextlib import ExitStack

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro import WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def test_micro(benchmark: BenchmarkFixture, name: str) -> None:
    """Time one operation."""
    with ExitStack() as stack:
        benchmark(WORKLOADS[name](stack))
