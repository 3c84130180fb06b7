"""ringmain load."""

from typing import Any

import click

from ringmain.cli.options import linger, one_end
from ringmain.errors import UsageError


@click.command()
@one_end
@click.option("-c", "--connect", is_flag=True, help="Connect to ENDPOINT instead of listening there.")
@click.option("-o", "--listen-once", is_flag=True, help="End after the first connection.")
@click.option("-k", "--keep-listening", is_flag=True, help="Serve one client after another: the default.")
@click.option("-O", "--output", metavar="FILE", default="-", help="Write to FILE instead of standard output.")
@linger
def load(connect: bool, listen_once: bool, keep_listening: bool, **options: Any) -> int:
    """Receive at ENDPOINT and write what arrives to standard output.

    \b
    ringmain load tcp://127.0.0.1:8000 > events.ndjson
    ringmain load --listen-once tcp://:8000 | zstd > dump.zst
    ringmain load --connect tcps://example.org:4000 | head -1
    ringmain load tcp://127.0.0.1:4000 --tls --certfile key_and_cert.pem
    """
    if connect and listen_once:
        raise UsageError("--connect with --listen-once", "there is nothing to listen at", "leave one of them out")
    if keep_listening and (connect or listen_once):
        other = "--connect" if connect else "--listen-once"
        raise UsageError(f"--keep-listening with {other}", "they contradict each other", "leave one of them out")
    # Imported when it is used: --help and --version need neither the event loop nor sockets.
    from ringmain.cli.verbs import run_load

    return run_load(connect=connect, listen_once=listen_once, **options)
