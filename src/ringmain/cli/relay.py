"""ringmain relay."""

from typing import Any

import click

import ringmain
from ringmain.cli.command import Command
from ringmain.cli.load import run_load
from ringmain.cli.options import TLS_OPTIONS, linger, max_connections, totals, two_ends
from ringmain.cli.save import run_save
from ringmain.cli.to_log import delimiter, run_relay_to_log, run_save_to_log, take_log_options, to_log
from ringmain.endpoint import is_log
from ringmain.errors import UsageError

_ENDS = ("source", "destination")
# What one client takes at most: both sockets, a pipe each way, and what watches each socket.
_DESCRIPTORS = 8


@click.command(cls=Command, short_help="Listen at SOURCE and relay each client to DESTINATION.")
@click.option("-c", "--connect", is_flag=True, help="Connect to SOURCE instead of listening there.")
@click.option("-l", "--listen", is_flag=True, help="Listen at DESTINATION instead of connecting.")
@click.option("-o", "--listen-once", is_flag=True, help="End after the first connection.")
@max_connections("Serve up to N clients at once, each with its own connection to the other side.")
@click.option("--one-way", is_flag=True, help="Relay only from SOURCE to DESTINATION; answers are dropped.")
@click.option("--accept-proxy", is_flag=True, help="Expect a PROXY protocol header from clients at SOURCE.")
@click.option("--send-proxy", type=click.Choice(["v1", "v2"]), help="Send a PROXY protocol header to DESTINATION.")
@click.option(
    "--reconnect",
    is_flag=True,
    help="With --one-way: after a lost connection, go on with a new one; try forever, or --retry times. The last bytes "
    "may come twice.",
)
@linger
@totals
@delimiter
@to_log
@two_ends
def relay(source: str, destination: str, **options: Any) -> int:
    """Listen at SOURCE, connect to DESTINATION for each client, and relay both ways: one client at a time, or many.

    \b
    ringmain relay tcp://:9000 tcp://10.0.0.5:9000
    ringmain relay tcps://:443 tcp://127.0.0.1:8080 --source-certfile key_and_cert.pem      end TLS
    ringmain relay tcp://127.0.0.1:8080 tcps://example.org:443                              add TLS
    ringmain relay --max-connections 1000 tcp://:9000 tcp://10.0.0.5:9000                   many clients at once
    ringmain relay unix:/run/events.sock tcps://example.org:4000                            from a UNIX socket
    ringmain relay --one-way tcp://:9000 tcp://10.0.0.5:9000                                drop answers
    ringmain relay --one-way --reconnect --delimiter '\\n' tcp://:9000 tcps://example.org:4000   goes on after a loss
    ringmain relay tcp://:9000 ./events.ndjson                                              into a file, as load
    ringmain relay - tcp://10.0.0.5:9000                                                    from a pipe, as save
    ringmain relay --max-connections 100 tcp://:9000 nats://10.0.0.5:4222/events            into a NATS stream

    Either end may be - (standard input or output) or a file or FIFO, whose name has a slash in it: ./events.ndjson.

    With --reconnect, relay connects again to a lost DESTINATION, as save --reconnect does, while SOURCE waits. What
    DESTINATION had not acknowledged is sent again. If DESTINATION is down when a client arrives, the client is reset,
    unless --retry is given. With --connect, relay connects to SOURCE again however its connection has ended.
    """
    ours = take_log_options(destination, options)
    tls = {end: {name: options.pop(f"{end}_{name}") for name in TLS_OPTIONS} for end in _ENDS}
    if is_log(destination) and not _is_file(source):
        ends = {"source_tls": tls["source"], "destination_tls": tls["destination"]}
        return run_relay_to_log(source, destination, options.pop("path"), ours, **ends, **options)
    if not _is_file(source) and not _is_file(destination):
        return run_relay(source, destination, source_tls=tls["source"], destination_tls=tls["destination"], **options)
    _check_file(source, destination, options)
    connect, listen = options.pop("connect"), options.pop("listen")
    if _is_file(source):
        options.pop("linger")
        options |= tls["destination"]
        options |= {"tls": False, "prefix": "destination_tls.", "option": "SOURCE"}
        if is_log(destination):
            return run_save_to_log(destination, source, options.pop("path"), ours, listen=listen, **options)
        return run_save(destination, source, listen=listen, **options)
    options |= tls["source"] | {"tls": False, "prefix": "source_tls.", "option": "DESTINATION"}
    return run_load(source, destination, connect=connect, **options)


def _is_file(end: str) -> bool:
    return end == "-" or ("/" in end.rstrip("/") and "://" not in end and not end.startswith("unix:"))


def _check_file(source: str, destination: str, options: dict[str, Any]) -> None:
    """Refuse what makes no sense with a file at one end, and take out of the options what makes no difference."""
    if _is_file(source) and _is_file(destination):
        raise UsageError(f"{source} and {destination}", "neither end is a connection", "use cat")
    file, flag, end = (source, "connect", "SOURCE") if _is_file(source) else (destination, "listen", "DESTINATION")
    if options[flag]:
        raise UsageError(f"--{flag} with {file}", f"{end} is a file", "leave one of them out")
    for name in ("accept_proxy", "send_proxy"):
        if options.pop(name):
            raise UsageError(f"--{name.replace('_', '-')} with {file}", "it needs two connections", "leave it out")
    if options["listen_once"] and not (options["listen"] if _is_file(source) else not options["connect"]):
        raise UsageError("--listen-once", "there is nothing to listen at", "leave it out: one connection is relayed")
    options.pop("one_way")
    if end == "DESTINATION" and (options.pop("reconnect") or options.pop("delimiter")):
        why = f"{file} cannot be lost, so there is nothing to reconnect"
        raise UsageError(f"--reconnect or --delimiter with {file}", why, "leave it out")


def run_relay(
    source: str,
    destination: str,
    path: str,
    *,
    source_tls: dict[str, Any],
    destination_tls: dict[str, Any],
    **options: Any,
) -> int:
    """Run `ringmain relay` between two endpoints; return the exit code."""
    import os

    from ringmain.cli.descriptors import allow_descriptors
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session
    from ringmain.cli.stats import Present, Side, relay_figures
    from ringmain.cli.summary import Blame
    from ringmain.cli.tls import warn_of_unused
    from ringmain.endpoint import Endpoint
    from ringmain.outcome import RelayOutcome, Unserved
    from ringmain.progress import relay_line, waiting_line

    session = Session(options, source, destination)
    allow_descriptors(options["max_connections"], _DESCRIPTORS)
    for name, url, tls in (("source", source, source_tls), ("destination", destination, destination_tls)):
        if not (Endpoint.parse(url).tls or tls["tls_auto"]):
            warn_of_unused(tls, f"{name}_tls.", "a tcps:// endpoint")
    relayer = ringmain.relay(
        source,
        destination,
        source_tls=ringmain.TlsSettings(**source_tls),
        destination_tls=ringmain.TlsSettings(**destination_tls),
        **options,
    )

    ends, many = [relayer.source, relayer.destination], options["max_connections"] > 1
    session.check_reloading(*(end.settings for end in ends if end.tls))

    def on_end(outcome: RelayOutcome) -> None:
        row = relay_figures(outcome, relayer.refused)
        session.account.record(row, outcome.source.size, outcome.destination.size, outcome, relayer.served)

    def look() -> tuple[int, int, float]:
        there, back = [*relayer.taken, 0, 0][:2]
        return session.account.bytes_in + there, session.account.bytes_out + back, relayer.fullness

    def present() -> Present:
        names = ["source", "destination"][: 2 - options["one_way"]]
        ways = [*map(Side, relayer.taken, relayer.counters)] or [Side(0, None)] * len(names)
        sides = dict(zip(names, ways, strict=True))
        unserved = Unserved(relayer.source.unserved + relayer.destination.unserved)
        tries = sum(end.reconnects for end in ends), sum(end.connect_failures for end in ends)
        not_after = {"source": relayer.source.not_after, "destination": relayer.destination.not_after}
        return Present(relayer.served, unserved, sides, waiting(), *tries, not_after)

    def waiting() -> str:
        lost = relayer.waiting_for if not many else []
        return waiting_line(*lost[0]) if lost else ""

    def line(*figures: Any) -> str:
        return waiting() or (f"{relayer.served} connected  " if many else "") + relay_line(*figures)

    async def work() -> None:
        relayer.on_end = on_end
        for name, end in zip(_ENDS, ends, strict=True):
            session.account.record_failures(end, name)
        async with relayer:
            with session.announced(*((end, end.endpoint, end.tls) for end in ends)):
                await relayer.serve(path)

    blame = Blame("the destination", "the source", lanes=len(os.sched_getaffinity(0)) if many else 1)
    ours: dict[str, Any] = {"renewal": Renewal(ends), "words": ("there", "back"), "blame": lambda: blame}
    return session.run(work, relayer.stop, look, line, present, **ours)
