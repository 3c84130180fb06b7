"""A result as one page that needs nothing else: for the browser, a phone, or the printer."""

import statistics
from html import escape
from typing import Any

from ringmain.bench.chart import Chart, Rows
from ringmain.bench.table import cells_of
from ringmain.endpoint import host_and_port

_STYLE = """
:root { --ground: #fff; --text: #1b1f24; --soft: #57606a; --line: #8c959f; --grid: #e3e6ea; --shade: #eef0f2;
 --one: #0b62a8; --two: #c2571a; --bad: #b3261e; --good: #1a7f37; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --text: #e6e9ec; --soft: #a5adb5; --line: #7d868f;
 --grid: #2b3137; --shade: #22272c; --one: #6cb6ff; --two: #f0a06a; --bad: #ff8078; --good: #5fd07d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--ground); color: var(--text);
 font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 1rem 0 0; break-inside: avoid; } figcaption { font-size: .9rem; font-weight: 600; }
figcaption small { font-weight: 400; color: var(--soft); }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--text); }
svg .tick, svg .name, svg .note { fill: var(--soft); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .axis { fill: none; stroke: var(--line); } svg .grid { stroke: var(--grid); } svg .shade { fill: var(--shade); }
svg .line { fill: none; stroke-width: 2; } svg .line.one { stroke: var(--one); } svg .line.two { stroke: var(--two); }
svg circle.one, svg rect.one { fill: var(--one); } svg circle.two, svg rect.two { fill: var(--two); }
svg .band { opacity: .18; } svg .median { stroke: var(--text); stroke-width: 2; }
svg .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 3 2; } svg .even { stroke: var(--line); }
.key { display: inline-block; width: .7em; height: .7em; } .key.one { background: var(--one); }
.key.two { background: var(--two); } .ok { color: var(--good); } .regression { color: var(--bad); }
.inconclusive { color: var(--two); } .verdict { font-weight: 700; }
@media print { :root { --ground: #fff; --text: #000; --soft: #444; --line: #777; --grid: #ddd; --shade: #eee;
 --one: #0b62a8; --two: #c2571a; --bad: #b3261e; --good: #1a7f37; }
 body { padding: 0; font-size: 11px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
 .charts { grid-template-columns: 1fr 1fr; } h2 { break-after: avoid; } .scroll { overflow: visible; } }
"""
_FIGURES = {"gb_per_second": "Throughput", "cpu_seconds_per_gb": "CPU seconds per GB"}
_KEYS = {"one": '<span class="key one"></span>', "two": '<span class="key two"></span>'}


def page(whole: dict[str, Any]) -> str:
    """Return the page of what `Run.whole` returns."""
    tests = whole.get("tests", {"": whole})
    start = whole["start"]
    verdict = _verdict(whole["verdict"]) if "verdict" in whole else ""
    body = [
        f"<header><h1>ringmain bench {verdict}</h1>",
        f"<p>{escape(start['system_info'])}</p>",
        f"<p>{escape(start['version'])}, {escape(start['timestamp']['time'])}</p></header>",
    ]
    if len(tests) > 1:
        body.append(f'<div class="charts">{_overview(tests)}</div>')
    body += [_section(name, test) for name, test in tests.items()]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>ringmain bench</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _section(name: str, test: dict[str, Any]) -> str:
    start = test["start"]
    peer = start["connected"][0]
    tls = f"{start['tls']['version']}, {start['tls']['cipher']}" if start["tls"] else "plain"
    streams = start["test_start"]["num_streams"]
    where = host_and_port(peer["remote_host"], peer["remote_port"])
    words = f"{where}, {tls}, {streams} stream{'s' if streams > 1 else ''}"
    head, *rows = cells_of(test)
    table = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    heading = "".join(f"<th>{escape(cell).replace(chr(10), '<br>')}</th>" for cell in head)
    charts = [_over_time(test), _cpu(test)]
    if "rounds" in test:
        charts += [_rounds(test["rounds"], figure) for figure in _FIGURES]
    if "comparison" in test:
        charts.append(_comparison(test["comparison"]))
    return (
        f"<section><h2>{escape(name or 'Result')}</h2><p>{escape(words)}</p>"
        f'<div class="scroll"><table><thead><tr>{heading}</tr></thead><tbody>{table}</tbody></table></div>'
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _figure(caption: str, svg: str, note: str = "") -> str:
    return f"<figure><figcaption>{caption} <small>{note}</small></figcaption>{svg}</figure>"


def _verdict(word: str) -> str:
    return f'<span class="verdict {word}">{word}</span>'


def _overview(tests: dict[str, dict[str, Any]]) -> str:
    """Draw the throughput and the cost of all tests."""
    parts = []
    speeds = [test["end"]["sum_received"]["bits_per_second"] / 8e9 for test in tests.values()]
    costs = [test["end"]["host"]["cpu_seconds_per_gb"] or 0.0 for test in tests.values()]
    for caption, unit, values in (("Throughput", "GB/s", speeds), ("CPU", "CPU seconds per GB, this end", costs)):
        names = [f"{name}: {value:.3g}" for name, value in zip(tests, values, strict=True)]
        rows = Rows(f"{caption} of all tests", 0.0, max(values), unit, names)
        for at, value in enumerate(values):
            rows.bar(at, 0.0, value, "one")
        parts.append(_figure(caption, rows.svg()))
    return "".join(parts)


def _over_time(test: dict[str, Any]) -> str:
    intervals = [it["sum"] for it in test["intervals"]]
    usual = statistics.median(it["seconds"] for it in intervals)
    # The rest after the last full interval is too short to tell a rate.
    drawn = [it for it in intervals if it["seconds"] > usual / 5] or intervals
    most = max(it["bits_per_second"] for it in drawn) / 8e9
    chart = Chart("Throughput over time", (0.0, drawn[-1]["end"]), (0.0, most * 1.1), ("seconds", "GB/s"))
    warm_up = [it for it in drawn if it["omitted"]]
    if warm_up:
        chart.shade(warm_up[0]["start"], warm_up[-1]["end"], "warm-up")
    points = [(at, it["bits_per_second"] / 8e9) for it in drawn for at in (it["start"], it["end"])]
    chart.line(points, "one")
    return _figure("Throughput over time", chart.svg(), "at this end")


def _cpu(test: dict[str, Any]) -> str:
    ends = [("this end", test["end"]["host"]), ("the other end", test["end"]["remote"])]
    costs = [
        [it[f"cpu_{kind}_seconds"] / it["bytes"] * 1e9 if it["bytes"] else 0.0 for kind in ("user", "system")]
        for _, it in ends
    ]
    names = [f"{name}: {sum(cost):.3g}" for (name, _), cost in zip(ends, costs, strict=True)]
    rows = Rows("CPU time, user and system", 0.0, max(map(sum, costs)) * 1.05, "CPU seconds per GB", names)
    for at, (user, system) in enumerate(costs):
        rows.bar(at, 0.0, user, "one")
        rows.bar(at, user, user + system, "two")
    return _figure("CPU", rows.svg(), f"{_KEYS['one']} user {_KEYS['two']} system")


def _rounds(rounds: list[dict[str, Any]], figure: str) -> str:
    """Draw the rounds, and a band from the first to the third quarter of each contender's."""
    contenders = (("ringmain", "one"), ("reference", "two"))
    most = max(it[name][figure] for it in rounds for name, _ in contenders)
    unit = "GB/s" if figure == "gb_per_second" else "CPU seconds per GB"
    title = f"{_FIGURES[figure]} in rounds"
    chart = Chart(title, (0.5, len(rounds) + 0.5), (0.0, most * 1.1), ("round", unit))
    for number in range(1, len(rounds) + 1):
        if len(rounds) <= 15 or number % (len(rounds) // 10) == 0:
            chart.label(number, str(number))
    for name, kind in contenders:
        values = [it[name][figure] for it in rounds]
        first, middle, third = statistics.quantiles(values, n=4)
        chart.band(first, third, kind)
        chart.line([(0.5, middle), (len(rounds) + 0.5, middle)], kind)
        chart.dots([(number + 1, value) for number, value in enumerate(values)], kind)
    key = f"{_KEYS['one']} ringmain {_KEYS['two']} Python's sockets; line: median, band: half of the rounds"
    return _figure(title, chart.svg(), key)


def _comparison(comparison: dict[str, Any]) -> str:
    """Draw the ratio of each figure to the baseline's with its interval, and where it would be a regression."""
    figures, bar = comparison["figures"], 1 - comparison["noise_threshold"]
    limits = {"gb_per_second": bar, "cpu_seconds_per_gb": 1 / bar}
    values = [it[name] for it in figures.values() for name in ("low", "high")] + list(limits.values())
    least, most = min(values) * 0.98, max(values) * 1.02
    names = [f"{_FIGURES[name]}: {it['ratio']:.3f}, {it['verdict']}" for name, it in figures.items()]
    rows = Rows("Comparison with the baseline", least, most, "ratio to the baseline", names)
    for at, (name, it) in enumerate(figures.items()):
        rows.mark(at, 1.0, "even")
        rows.bar(at, it["low"], it["high"], "one")
        rows.mark(at, it["ratio"], "median")
        rows.mark(at, limits[name], "limit")
    note = f"bar: {comparison['confidence']:.0%} interval; dashed: worse than the threshold from here on"
    return _figure(f"Baseline {_verdict(comparison['verdict'])}", rows.svg(), note)
