"""What relay and save do where they go to a log, nats://HOST:PORT/SUBJECT: options, and the runs."""

from typing import TYPE_CHECKING, Any

import click

from ringmain.cli.values import FILE, LongRecords, Octets, Size
from ringmain.endpoint import is_log
from ringmain.errors import UsageError
from ringmain.settings import FRAMINGS, LONG_RECORDS, MAX_IN_FLIGHT, MESSAGE_SIZE

if TYPE_CHECKING:
    from ringmain.engines.nats_publish import Publisher

# What one client takes: its socket, and what watches it.
_DESCRIPTORS = 2
# Of save and relay, which have another use for it too.
delimiter = click.option(
    "--delimiter",
    metavar="TEXT",
    type=Octets(),
    default=b"",
    help=r"What records end with, such as \n or \x1e. With --reconnect a new connection begins with a whole record; to "
    "nats:// each message holds whole records.",
)
_OPTIONS = [
    click.option(
        "--framing",
        type=click.Choice(FRAMINGS),
        metavar="KIND",
        help="To nats://: what frames the data consists of, see load.",
    ),
    click.option(
        "--long-records",
        type=LongRecords(),
        default=LongRecords.words(LONG_RECORDS),
        show_default=True,
        help="To nats://: reset the sender of a record larger than the server's max_payload, or skip the record.",
    ),
    click.option(
        "--message-size",
        metavar="SIZE",
        type=Size(),
        default=MESSAGE_SIZE,
        show_default="256K",
        help="To nats://: largest message, unless a single record is longer.",
    ),
    click.option(
        "--max-in-flight",
        metavar="SIZE",
        type=Size(),
        default=MAX_IN_FLIGHT,
        show_default=Size.words(MAX_IN_FLIGHT),
        help="To nats://: how much may be sent but not yet acknowledged; beyond that, senders wait.",
    ),
    click.option(
        "--credentials",
        metavar="FILE",
        type=FILE,
        help="To nats://: our JWT and seed, as nsc generate creds writes them.",
    ),
    click.option(
        "--create-stream",
        metavar="NAME[:REPLICAS]",
        help="To nats://: create a stream with file storage if none stores the subject. For trials.",
    ),
]
_OURS = ("delimiter", "framing", "long_records", "message_size", "max_in_flight", "credentials", "create_stream")


def to_log(command: Any) -> Any:
    """Give a command the options of a log."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def take_log_options(destination: str, options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a log out of all, and return them; raise UsageError for one that is given in vain.

    Where there is no log `delimiter` stays, which has another use.
    """
    names = [name for name in _OURS if name != "delimiter" or is_log(destination)]
    ours = {name: options.pop(name) for name in names}
    if not is_log(destination):
        context = click.get_current_context()
        for name in names:
            if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                why = "it is for a NATS stream only"
                raise UsageError(f"{name}=", why, "give nats://HOST:PORT/SUBJECT, or leave it out")
    return ours


def _refuse(options: dict[str, Any], *names: str) -> None:
    """Take options that make no sense here out of all; raise UsageError for one that is given."""
    for name in names:
        if options.pop(name, False):  # a relay from a file has no reconnect
            raise UsageError(f"{name}=True", "it does not apply to a NATS stream", "leave it out")


def _check_path(path: str) -> None:
    if path == "kernel":
        raise UsageError("path=kernel", "records are cut in blocks", "leave path= out")


def run_relay_to_log(
    source: str,
    destination: str,
    path: str,
    ours: dict[str, Any],
    *,
    source_tls: dict[str, Any],
    destination_tls: dict[str, Any],
    **options: Any,
) -> int:
    """Run `ringmain relay` into a log; return the exit code."""
    from ringmain.cli.descriptors import allow_descriptors
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session
    from ringmain.cli.stats import Present, Side, relay_figures
    from ringmain.cli.tls import warn_of_unused
    from ringmain.endpoint import Endpoint
    from ringmain.engines.nats_relay import relay
    from ringmain.outcome import RelayOutcome
    from ringmain.progress import progress_line
    from ringmain.settings import TlsSettings

    session = Session(options, source, destination)
    allow_descriptors(options["max_connections"], _DESCRIPTORS)
    _check_path(path)
    _refuse(options, "listen", "send_proxy", "reconnect")
    del options["one_way"]  # as it is anyway
    listens = Endpoint.parse(source)
    if not (listens.tls or source_tls["tls_auto"]):
        warn_of_unused(source_tls, "source_tls.", "a tcps:// endpoint")
    relayer = relay(
        source,
        destination,
        source_tls=TlsSettings(**source_tls),
        destination_tls=TlsSettings(**destination_tls),
        **ours,
        **options,
    )

    papers = relayer.publisher.papers
    ours_tls = [relayer.source.settings] if relayer.source.tls else []
    session.check_reloading(*ours_tls, papers.settings, credentials=papers.path)

    def on_end(outcome: RelayOutcome) -> None:
        row, source = relay_figures(outcome, relayer.refused), outcome.source
        session.account.record(row, source.counters.bytes_in, source.size, outcome, relayer.served)

    def look() -> tuple[int, int, float]:
        received, stored = relayer.moved
        return session.account.bytes_in + received, session.account.bytes_out + stored, relayer.fullness

    async def work() -> None:
        relayer.on_end = on_end
        session.account.record_failures(relayer.source, "source")
        async with relayer:
            with session.announced((relayer.source, listens, listens.tls)):
                await relayer.serve()

    def present() -> Present:
        end, sides = relayer.source, {"source": Side(relayer.moved[1], relayer.counters)}
        failures = end.connect_failures + relayer.publisher.tally.failures
        state = _waiting_for(relayer.publisher), relayer.publisher.tally.reconnects, failures
        not_after = {"source": end.not_after, "destination": papers.not_after}
        return Present(relayer.served, end.unserved, sides, *state, not_after)

    return session.run(work, relayer.stop, look, progress_line, present, renewal=Renewal([relayer.source, papers]))


def run_save_to_log(
    endpoint: str, input_: str, path: str, ours: dict[str, Any], *, option: str = "--input", **options: Any
) -> int:
    """Run `ringmain save` into a log; return the exit code. `option` is what `input_` was given as."""
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session
    from ringmain.cli.stats import Present, Side, figures
    from ringmain.engines.nats_save import save
    from ringmain.flow.descriptor import open_input
    from ringmain.outcome import Outcome, Unserved
    from ringmain.progress import progress_line

    session = Session(options, endpoint)
    _refuse(options, "listen", "listen_once", "reconnect")
    if options["max_connections"] > 1:
        why = "there is only one connection"
        raise UsageError(f"max_connections={options['max_connections']}", why, "leave it out")
    _check_path(path)
    for name in ("max_connections", "slow", "client_buffer"):
        options.pop(name, None)
    source = open_input(input_, option)
    saver = save(endpoint, peer=source.name, **ours, **options)
    papers = saver.publisher.papers
    session.check_reloading(papers.settings, credentials=papers.path)
    session.share_terminal(source)

    def look() -> tuple[int, int, float]:
        return saver.counters.bytes_in, saver.stored, saver.fullness

    def on_end(outcome: Outcome) -> None:
        session.account.record(figures(outcome, 0), saver.counters.bytes_in, saver.stored, outcome)

    async def work() -> None:
        try:
            async with saver:
                saver.on_end = on_end
                with session.announced():
                    await saver.send(source)
        finally:
            source.close()

    def stop() -> bool:
        source.stop()
        return saver.served > 0

    def present() -> Present:
        publisher, served = saver.publisher, saver.served
        sides = {"": Side(saver.stored, saver.counters) if served else Side(0, None)}
        state = _waiting_for(publisher), publisher.tally.reconnects, publisher.tally.failures
        return Present(served, Unserved(), sides, *state, {"destination": papers.not_after})

    return session.run(work, stop, look, progress_line, present, renewal=Renewal([papers]))


def _waiting_for(publisher: "Publisher") -> str:
    return f"waiting for {publisher.endpoint.cluster}" if publisher.is_lost else ""
