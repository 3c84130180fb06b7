"""The README's snippets of the pytest plugin, run as pasted."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(not README.exists(), reason="the README is not beside these tests")
@pytest.mark.parametrize(("position", "count"), [(0, 2), (1, 1)])
def test_a_snippet_passes_as_pasted(pytester: pytest.Pytester, position: int, count: int) -> None:
    section = README.read_text().split("## In your tests")[1].split("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(snippets) == 2
    pytester.makepyfile(test_readme=snippets[position])
    result = pytester.runpytest_subprocess("-p", "no:benchmark")
    result.assert_outcomes(passed=count)
    [told] = re.findall(r"\ntest_readme.py::(\w+): .* GB/s", section)
    assert (f"{told}: " in result.stdout.str()) == (position == 1)
