"""ringmain save."""

from typing import Any

import click

from ringmain.cli.options import one_end


@click.command()
@one_end
@click.option("-l", "--listen", is_flag=True, help="Listen at ENDPOINT instead of connecting.")
@click.option("-o", "--listen-once", is_flag=True, help="End after the first connection; implies --listen.")
@click.option("-I", "--input", "input_", metavar="FILE", default="-", help="Send FILE instead of standard input.")
def save(**options: Any) -> int:
    """Connect to ENDPOINT and send standard input.

    \b
    ringmain save tcp://127.0.0.1:8000 < events.ndjson
    ringmain save --listen --input events.ndjson tcp://:8000
    zstdcat dump.zst | ringmain save --retry forever tcps://example.org:4000

    A listener sends a regular file whole to every client; any other input goes on with the next client where the last
    one left. A signal ends it after what was read: a file that is cut short by a reset, any other input properly.
    """
    # Imported when it is used: --help and --version need neither the event loop nor sockets.
    from ringmain.cli.verbs import run_save

    return run_save(**options)
