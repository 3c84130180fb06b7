"""ringmain load: its flags, and where bytes go. What they do is `ringmain.loader`'s; who writes is `flow.copying`."""

from typing import TYPE_CHECKING, Any

import click

import ringmain
from ringmain.cli.command import Command
from ringmain.cli.load_log import is_of_log, load_log, of_log
from ringmain.cli.options import linger, max_connections, one_end, totals
from ringmain.cli.values import FILE, Count, LongRecords, Octets, Size
from ringmain.errors import UsageError
from ringmain.settings import FRAMINGS, LONG_RECORDS, MAX_RECORD, MERGED_RECORD, MOST_PROCESSES, PROCESSES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ringmain._counters import Counters
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session
    from ringmain.cli.signals import Signals
    from ringmain.cli.summary import Blame
    from ringmain.cli.template import Template
    from ringmain.flow.descriptor import Output

    Move = Callable[[], Coroutine[Any, Any, None]]


# What a connection has with a place of its own: a socket, a file or a pipe and a process, and the kernel path's.
_APART_DESCRIPTORS = 8


@click.command(cls=Command)
@one_end
@click.option("-c", "--connect", is_flag=True, help="Connect to ENDPOINT instead of listening there.")
@click.option("-o", "--listen-once", is_flag=True, help="End after the first connection.")
@click.option("-k", "--keep-listening", is_flag=True, help="Serve one client after another; the default.")
@click.option(
    "-O",
    "--output",
    metavar="FILE",
    type=FILE,
    default="-",
    help="Write to FILE instead of standard output. It is emptied first, unless --append is given. With {peer} or "
    "{number} in its name each connection gets its own file; %Y-%m-%d and other codes of date(1) become the time.",
)
@click.option("--append", is_flag=True, help="Append to FILE. If another program truncates it, no hole is left.")
@click.option(
    "--exec",
    metavar="COMMAND",
    help="Run COMMAND with /bin/sh -c for each connection, which becomes its standard input. RINGMAIN_PEER, "
    "RINGMAIN_NUMBER and RINGMAIN_LISTENER are in its environment.",
)
@max_connections(
    "Serve up to N clients at once. Their records are merged, unless each client has its own file or command."
)
@click.option(
    "--processes",
    metavar="P",
    type=Count(1, MOST_PROCESSES),
    default=PROCESSES,
    show_default=True,
    help="Serve clients in P processes, to use P cores. The name in --output then needs {process}: 1 to P.",
)
@click.option(
    "--delimiter",
    metavar="TEXT",
    type=Octets(),
    default=b"",
    help=r"Write whole records only. Each ends with TEXT, such as \n or \x1e; with several clients \n is the default.",
)
@click.option(
    "--framing",
    type=click.Choice(FRAMINGS),
    metavar="KIND",
    help="Check that the data consists of frames of this kind, and write whole ones only: octet-counting (syslog), "
    "length:4be (or 1, 2, 8 bytes; or le), nul or crlf.",
)
@click.option(
    "--max-record",
    metavar="SIZE",
    type=Size(),
    help=f"Longest record to accept: {Size.words(MAX_RECORD)}, with several clients {Size.words(MERGED_RECORD)}.",
)
@click.option(
    "--long-records",
    type=LongRecords(),
    default=LongRecords.words(LONG_RECORDS),
    show_default=True,
    help="Reset the sender of a longer record, or skip the record.",
)
@click.option(
    "--receive-buffer",
    metavar="SIZE",
    type=Size(),
    help="Fixed size of each connection's receive buffer in the kernel, up to net.core.rmem_max; the kernel takes "
    "twice the memory. Without this option the kernel adapts the size.",
)
@linger
@totals
@of_log
def load(connect: bool, listen_once: bool, keep_listening: bool, **options: Any) -> int:
    """Receive at ENDPOINT and write the bytes to standard output.

    \b
    ringmain load tcp://127.0.0.1:8000 > events.ndjson
    ringmain load --listen-once tcp://:8000 | zstd > dump.zst
    ringmain load --connect tcps://example.org:4000 | head -1
    ringmain load tcp://127.0.0.1:4000 --tls --certfile key_and_cert.pem
    ringmain load unix:/run/events.sock > events.ndjson
    ringmain load tcp://fd:events > events.ndjson             a socket that systemd passes in
    ringmain load --max-connections 100 tcp://:8000 > events.ndjson
    ringmain load --max-connections 100 --output 'dumps/{peer}-{number}' tcp://:8000
    ringmain load --max-connections 100 --exec 'zstd -qo dumps/$RINGMAIN_NUMBER.zst' tcp://:8000
    ringmain load --consumer parsers nats://127.0.0.1:4222/EVENTS
    """
    if is_of_log(options["endpoint"], options):
        return load_log(**options)
    if connect and listen_once:
        raise UsageError("--connect with --listen-once", "there is nothing to listen at", "leave one of them out")
    if keep_listening and (connect or listen_once):
        other = "--connect" if connect else "--listen-once"
        remedy = "leave one of them out; what curl calls -k is --insecure"
        raise UsageError(f"--keep-listening with {other}", "they contradict each other", remedy)
    return run_load(connect=connect, listen_once=listen_once, **options)


def run_load(
    endpoint: str,
    output: str,
    path: str,
    *,
    append: bool = False,
    option: str = "--output",
    processes: int = PROCESSES,
    **options: Any,
) -> int:
    """Run `ringmain load`; return the exit code. `option` is what `output` was given as."""
    import contextlib
    import os

    from ringmain.cli.descriptors import allow_descriptors
    from ringmain.cli.session import Session
    from ringmain.cli.template import Template
    from ringmain.cli.tls import uses_tls
    from ringmain.endpoint import Endpoint
    from ringmain.flow.descriptor import open_output
    from ringmain.flow.path import may_pump
    from ringmain.sources import asked_for

    session = Session(options, endpoint)
    if append and output == "-":
        if options.get("exec") is not None:
            raise UsageError("--append with --exec", "the command gets the bytes", "leave one of them out")
        raise UsageError("--append", "standard output is already open", f"give {option} FILE, or redirect with >>")
    if processes > 1:
        from ringmain.cli.processes import Processes

        return Processes(endpoint, output, path, option, processes, session, options, append=append).run()
    flags = os.O_APPEND if append else 0
    command = options.pop("exec", None)
    template = Template(output, option)
    if command is not None and output != "-":
        raise UsageError(f"--exec with {option}", "the command gets the bytes", "leave one of them out")
    apart = command is not None or template.varies
    allow_descriptors(options["max_connections"], _APART_DESCRIPTORS if apart else 1)
    tls = uses_tls(Endpoint.parse(endpoint), options)
    asked = asked_for(endpoint, **options)
    session.check_reloading(*([asked.settings] if tls else []))
    cut = bool(options.get("delimiter")) or options.get("framing") is not None
    if apart:
        may_pump(path, tls=tls, cut=cut)
        return _load_apart(template, command, path, flags, asked.loader(), session, tls=tls)
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(contextlib.closing(open_output(template.name(), option, flags)))
        may_pump(path, sink, tls=tls, cut=cut or asked.settings.max_connections > 1)
        early = not (asked.connect or session.has_metrics)  # which answer before it is said where is listened
        sockets = stack.enter_context(session.announcement.listening_at_once(asked)) if early else None
        # From here on clients may wait. What they need is imported before the first is accepted, nothing of it later.
        from ringmain.cli.outputs import reopen
        from ringmain.cli.renewal import Renewal
        from ringmain.net.gate import listen

        loader = asked.loader()
        loader.open_gate = lambda endpoint, settings: listen(endpoint, settings, sockets)
        renewal = Renewal([loader], [lambda: reopen(sink, template.name())])
        return load_into(sink, path, loader, session, tls=tls, renewal=renewal)


def load_into(
    sink: "Output",
    path: str,
    loader: "ringmain.Loader | ringmain.LogLoader",
    session: "Session",
    *,
    tls: bool,
    signals: "Signals | None" = None,
    renewal: "Renewal | None" = None,
) -> int:
    """Write what all connections bring to one output, until that ends; return the exit code."""
    import asyncio

    from ringmain._counters import Counters
    from ringmain.cli.summary import Blame
    from ringmain.flow import copying

    written = Counters()  # of all connections, where they are merged
    session.share_terminal(sink)

    async def move() -> None:
        async with loader:
            with session.announced((loader, loader.endpoint, tls)):
                sink.begin()
                if loader.merges:
                    await copying.merged_to_output(loader, sink, written)
                elif isinstance(loader, ringmain.Loader):
                    await copying.to_output(loader, sink, path)

    async def work() -> None:
        moving = asyncio.ensure_future(move())
        leaving = asyncio.ensure_future(sink.reader_left())
        try:
            await asyncio.wait([moving, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (moving, leaving):
                task.cancel()
            await asyncio.wait([moving, leaving])
            sink.close()
        if not moving.cancelled():
            moving.result()

    # A disk that is slow to take bytes makes no write wait for it that anybody counts.
    idle = "the peer or the disk" if sink.is_file else "the peer"
    return _run(work, loader, session, written, {}, signals, renewal, Blame("whoever reads the output", idle))


def _load_apart(
    template: "Template",
    command: str | None,
    path: str,
    flags: int,
    loader: "ringmain.Loader",
    session: "Session",
    *,
    tls: bool,
) -> int:
    """Run a load of each connection to a place of its own."""
    from ringmain._counters import Counters
    from ringmain.cli.outputs import Commands, Files
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.summary import Blame
    from ringmain.flow.apart import each_by_itself

    exits: dict[Counters, int] = {}
    if command is None:
        files = Files(template, path, flags)
        give, reopen = files.give, [files.reopen]
        blame = Blame("whoever reads the output", "the peer or the disk")
    else:
        session.share_terminal(None)
        commands = Commands(command, path, listening=not loader.connect)
        give, reopen, exits = commands.give, [], commands.exits
        blame = Blame("the command", "the peer")

    async def work() -> None:
        async with loader:
            with session.announced((loader, loader.endpoint, tls)):
                await each_by_itself(loader, give)

    return _run(work, loader, session, Counters(), exits, renewal=Renewal([loader], reopen), blame=blame)


def _run(
    work: "Move",
    loader: "ringmain.Loader | ringmain.LogLoader",
    session: "Session",
    written: "Counters",
    exits: "dict[Counters, int]",
    signals: "Signals | None" = None,
    renewal: "Renewal | None" = None,
    blame: "Blame | None" = None,
) -> int:
    from ringmain.cli.stats import Present, Side, figures
    from ringmain.outcome import Outcome, Unserved
    from ringmain.progress import progress_line

    def on_end(outcome: Outcome) -> None:
        row = figures(outcome, loader.refused, exits.pop(outcome.counters, None))
        session.account.record(row, outcome.counters.bytes_in, outcome.counters.bytes_out, outcome, loader.served)

    def look() -> tuple[int, int, float]:
        bytes_in, bytes_out = session.account.moved(loader.counters if loader.served else None)
        return bytes_in, bytes_out + written.bytes_out, loader.fullness

    def present() -> Present:
        counters = loader.counters if loader.served else None
        sides = {"": Side(counters.bytes_in if counters is not None else 0, counters)}
        if isinstance(loader, ringmain.Loader):
            failures, not_after = loader.connect_failures, {"source": loader.not_after}
            return Present(loader.served, loader.unserved, sides, connect_failures=failures, not_after=not_after)
        waiting = f"waiting for {loader.endpoint.cluster}" if loader.is_lost else ""
        tries = loader.reconnects, loader.connect_failures
        return Present(loader.served, Unserved(), sides, waiting, *tries, {"source": loader.papers.not_after})

    def line(*figures: Any) -> str:
        many = isinstance(loader, ringmain.Loader) and loader.merges
        return (f"{loader.served} connected  " if many else "") + progress_line(*figures)

    loader.on_end = on_end
    if isinstance(loader, ringmain.Loader):
        session.account.record_failures(loader)
    else:
        blame = None  # of a log nobody counts what waits
    return session.run(work, loader.stop, look, line, present, signals, renewal, blame=lambda: blame)
