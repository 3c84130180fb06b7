"""The page of `ringmain bench --report`, in a real browser: nothing from elsewhere, legible on a phone, printable."""

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import peers
import pytest
from measuring import measured, serving

from ringmain.bench.page import page

# Runs in a page around the report, which it measures as a phone would show it.
PROBE = """
<!DOCTYPE html><meta charset="utf-8"><body><iframe width="360" height="800" srcdoc="%s"></iframe><pre id="found"></pre>
<script>
onload = () => {
  const report = document.querySelector("iframe").contentDocument;
  const inside = (outer, inner) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
    && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1 && inner.width > 0 && inner.height > 0;
  const charts = [...report.querySelectorAll("svg")].map(svg => {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")];
    return {
      title: svg.querySelector("title").textContent,
      width: frame.width,
      names: [...svg.querySelectorAll(".name")].map(it => it.textContent),
      ticks: [...svg.querySelectorAll(".tick")].length,
      size: Math.min(...texts.map(it => it.getBoundingClientRect().height)),
      strays: texts.filter(it => !inside(frame, it.getBoundingClientRect())).map(it => it.textContent),
      marks: svg.querySelectorAll("rect, circle, polyline.line").length,
    };
  });
  const root = report.documentElement;
  document.getElementById("found").textContent = JSON.stringify(
    {charts, overflow: root.scrollWidth - root.clientWidth, text: report.body.innerText});
};
</script>
"""
KINDS = ["Throughput over time", "CPU time, user and system"]
ROUNDS = ["Throughput in rounds", "CPU seconds per GB in rounds"]


@pytest.fixture
def reported(bench: peers.Bench, tmp_path: Path) -> Path:
    """Return the page of a measurement that was compared with a baseline."""
    endpoint, path = serving(bench), tmp_path / "out.html"
    options = ("-t", "150ms", "-O", "300ms", "--rounds", "3")
    measured(endpoint, *options, "--save-baseline", tmp_path / "baseline.json")
    measured(endpoint, *options, "--baseline", tmp_path / "baseline.json", "--report", path)
    return path


def chromium(tmp_path: Path, *arguments: str) -> str:
    """Run a browser that has no network; return what it printed."""
    command = [peers.need("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def seen(tmp_path: Path, report: str) -> dict[str, Any]:
    """Return what a browser makes of a report on a phone."""
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE % html.escape(report))
    document = chromium(tmp_path, "--virtual-time-budget=5000", "--dump-dom", probe.as_uri())
    match = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
    assert match is not None
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


def check(found: dict[str, Any], titles: list[str]) -> None:
    """Hold what a browser has found against what a reader needs."""
    assert found["overflow"] <= 0
    assert [chart["title"] for chart in found["charts"]] == titles
    for chart in found["charts"]:
        assert 300 < chart["width"] <= 360
        assert chart["strays"] == []
        assert chart["size"] > 8
        assert chart["ticks"] >= 2
        assert chart["marks"] >= 1
        assert chart["names"]
        assert all(name in ("seconds", "GB/s", "round") or "CPU" in name or "ratio" in name for name in chart["names"])


def test_a_phone_shows_every_plot_with_axes_and_units(reported: Path, tmp_path: Path) -> None:
    found = seen(tmp_path, reported.read_text())
    check(found, [*KINDS, *ROUNDS, "Comparison with the baseline"])
    assert re.search(r"ringmain bench (ok|regression|inconclusive)\n", found["text"])
    assert "warm-up" in reported.read_text()


def test_loopback_has_an_overview_and_each_test(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    result = measured("-t", "50ms", "-O", "20ms", "--report", path)
    found = seen(tmp_path, path.read_text())
    check(found, ["Throughput of all tests", "CPU of all tests", *KINDS * len(result["tests"])])
    for name in result["tests"]:
        assert name in found["text"]


def test_it_is_printed(reported: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "out.pdf"
    chromium(tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", reported.as_uri())
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 3


def test_nothing_comes_from_elsewhere(reported: Path) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    text = reported.read_text()
    Reader().feed(text)
    assert {"svg", "table", "style"} <= {tag for tag, _ in tags}
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    assert not any(name in ("src", "href", "xlink:href", "srcset") for _, attributes in tags for name in attributes)
    assert not re.search(r"url\(|@import|https?:", text)


def test_what_comes_from_outside_is_no_markup(bench: peers.Bench) -> None:
    result = measured(serving(bench), "-n", "1M")
    result["start"]["system_info"] = result["start"]["connected"][0]["remote_host"] = "<script>&"
    text = page(result)
    assert "<script>" not in text
    assert text.count("&lt;script&gt;&amp;") == 2
