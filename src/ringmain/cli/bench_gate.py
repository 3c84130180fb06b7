"""The options of `bench` that keep rounds as a baseline, or compare them with one."""

from typing import TYPE_CHECKING, Any

import click

from ringmain.cli.options import Command, decorated
from ringmain.cli.values import FILE, Count, Percentage
from ringmain.errors import UsageError

if TYPE_CHECKING:
    from ringmain.bench.gate import Gate

BASELINES = ("save_baseline", "baseline")
OTHERS = ("rounds", "noise_threshold", "fail_on", "force")
# How long each takes, in seconds.
ROUND_SECONDS = 0.5
_FAIL_ON = ("regression", "inconclusive")


def gate(command: Command) -> Command:
    """Give a command the options of the gate."""
    return decorated(
        command,
        [
            click.option(
                "--save-baseline", metavar="FILE", type=FILE, help="Measure in rounds, and save them for --baseline."
            ),
            click.option(
                "--baseline", metavar="FILE", type=FILE, help="Measure in rounds, and compare with those in FILE."
            ),
            click.option("--rounds", type=Count(3), default=10, show_default=True, help="How many rounds to measure."),
            click.option(
                "--noise-threshold",
                type=Percentage(),
                default="5%",
                show_default=True,
                help="How much worse a result may be before it is a regression.",
            ),
            click.option(
                "--fail-on",
                type=click.Choice(_FAIL_ON),
                help="Exit with 1 for a regression and, if inconclusive is chosen, with 75 if the rounds show neither.",
            ),
            click.option(
                "--force", is_flag=True, help="Compare even if the baseline is of another machine or other options."
            ),
        ],
    )


def gate_of(options: dict[str, Any]) -> "Gate":
    """Take the gate out of the options."""
    from ringmain.bench.gate import Gate

    if options["fail_on"] is not None and options["baseline"] is None:
        raise UsageError("--fail-on", "there is nothing to compare with", "add --baseline FILE")
    return Gate(**{name: options.pop(name) for name in (*BASELINES, *OTHERS)})
