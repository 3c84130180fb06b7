"""The command line of the benchmarks."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.bars import bars_table, verdicts
from benchmarks.benches import BENCHES
from benchmarks.plots import draw, picture
from benchmarks.runner import run, smoke
from benchmarks.tables import say
from benchmarks.workshop import BenchError


def main() -> int:
    """Run or list benches; return the exit code, 1 when a contender failed. A missed bar is no failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the benches and their contenders")
    drawing = commands.add_parser("picture", help="draw the README's picture from what `run --json` has written")
    drawing.add_argument("results", nargs="?", type=Path, default=Path("benchmarks/results.json"), metavar="FILE")
    drawing.add_argument("--to", type=Path, default=Path("docs/_static/throughput.svg"), metavar="FILE")
    running = commands.add_parser("run", help="run the benches named, or all")
    running.add_argument("names", nargs="*", metavar="NAME")
    running.add_argument("--rounds", type=int, help="how often each contender runs (default: each bench's own)")
    running.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, and plots beside it")
    running.add_argument("--smoke", action="store_true", help="measure nothing, compare the bytes at both ends")
    arguments = parser.parse_args()
    if arguments.command == "list":
        for bench in BENCHES.values():
            say(f"{bench.name:10} {bench.title}\n{'':10} {', '.join(c.name for c in bench.contenders)}")
        return 0
    if arguments.command == "picture":
        arguments.to.write_text(picture(json.loads(arguments.results.read_text())))
        return 0
    unknown = set(arguments.names) - set(BENCHES)
    if unknown:
        parser.error(f"no such bench: {', '.join(sorted(unknown))}; see `python -m benchmarks list`")
    benches = [bench for name, bench in BENCHES.items() if not arguments.names or name in arguments.names]
    try:
        if arguments.smoke:
            smoke(benches)
            return 0
        results = run(benches, arguments.rounds)
    except BenchError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 1
    results["bars"] = verdicts(results)
    say(bars_table(results["bars"]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        draw(results, arguments.json.parent / "plots")
        say(f"All figures are in {arguments.json}, plots in {arguments.json.parent / 'plots'}")
    return 1 if any(bench["failed"] for bench in results["benches"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
