"""What relay and save do where they go to a log, nats://HOST:PORT/SUBJECT: options, and the runs."""

from typing import TYPE_CHECKING, Any

import click

from ringmain.cli.values import LongRecords, Octets, Size
from ringmain.endpoint import is_log
from ringmain.errors import RingmainError, UsageError
from ringmain.settings import FRAMINGS, LONG_RECORDS, MAX_IN_FLIGHT, MESSAGE_SIZE

if TYPE_CHECKING:
    from ringmain.engines.nats_records import Cutting

# What one client takes: its socket, and what watches it.
_DESCRIPTORS = 2
log_delimiter = click.option(
    "--delimiter",
    metavar="TEXT",
    type=Octets(),
    default=b"",
    help=r"To nats://: what records end at, as \n (the default) or \x1e. A message has whole records only.",
)
_OPTIONS = [
    click.option(
        "--framing", type=click.Choice(FRAMINGS), metavar="KIND", help="To nats://: frames, as load has them."
    ),
    click.option(
        "--long-records",
        type=LongRecords(),
        default=LongRecords.words(LONG_RECORDS),
        show_default=True,
        help="To nats://: reset the sender of one that is larger than the server's max_payload, or leave it out.",
    ),
    click.option(
        "--message-size",
        metavar="SIZE",
        type=Size(),
        default=MESSAGE_SIZE,
        show_default="256K",
        help="To nats://: the most that a message has, unless one record is longer.",
    ),
    click.option(
        "--max-in-flight",
        metavar="SIZE",
        type=Size(),
        default=MAX_IN_FLIGHT,
        show_default=Size.words(MAX_IN_FLIGHT),
        help="To nats://: so much may be sent and not acknowledged; then peers wait.",
    ),
    click.option("--credentials", metavar="FILE", help="To nats://: who we are, as nsc generate creds writes it."),
    click.option(
        "--create-stream",
        metavar="NAME[:REPLICAS]",
        help="To nats://: make a stream with file storage where none takes the subject. For trials.",
    ),
]
_OURS = ("delimiter", "framing", "long_records", "message_size", "max_in_flight", "credentials", "create_stream")


def to_log(command: Any) -> Any:
    """Give a command the options of a log."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def take_log_options(destination: str, options: dict[str, Any], *, shared: str | None = None) -> dict[str, Any]:
    """Take the options of a log out of all, and return them; raise UsageError for one that is given in vain.

    The option that is `shared` has a use elsewhere too.
    """
    names = [name for name in _OURS if name != shared or is_log(destination)]
    ours = {name: options.pop(name) for name in names}
    if not is_log(destination):
        context = click.get_current_context()
        for name in names:
            if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                why = "only what goes to a log is cut into messages"
                raise UsageError(f"{name}=", why, "give nats://HOST:PORT/SUBJECT, or leave it out")
    return ours


def _refuse(options: dict[str, Any], *names: str) -> None:
    """Take options that make no sense here out of all; raise UsageError for one that is given."""
    for name in names:
        if options.pop(name):
            raise UsageError(f"{name}=True", "it is no matter of a log", "leave it out")


def _check_path(path: str) -> None:
    if path == "kernel":
        raise UsageError("path=kernel", "records are cut in blocks", "leave path= out")


def _cutting(ours: dict[str, Any], **more: Any) -> "Cutting":
    from ringmain.engines.nats_records import Cutting

    names = ("delimiter", "framing", "long_records", "message_size", "max_in_flight")
    return Cutting(**{name: ours.pop(name) for name in names}, **more)


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
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session, allow_descriptors, warn_of_unused
    from ringmain.cli.stats import Present, Side, relay_figures, relay_sides
    from ringmain.endpoint import Endpoint
    from ringmain.engines.nats_relay import relay_to_log
    from ringmain.outcome import RelayOutcome
    from ringmain.progress import progress_line
    from ringmain.settings import TlsSettings

    session = Session(options)
    allow_descriptors(options["max_connections"], _DESCRIPTORS)
    _check_path(path)
    _refuse(options, "listen", "send_proxy")
    del options["one_way"]  # as it is anyway
    listens = Endpoint.parse(source)
    if not (listens.tls or source_tls["tls_auto"]):
        warn_of_unused(source_tls, "source_tls.", "a tcps:// endpoint")
    cutting = _cutting(ours, linger=options.pop("linger"), connections=options["max_connections"])
    relayer = relay_to_log(
        source,
        destination,
        source_tls=TlsSettings(**source_tls),
        destination_tls=TlsSettings(**destination_tls),
        cutting=cutting,
        **ours,
        **options,
    )

    session.check_reloading(*([relayer.source.settings] if relayer.source.tls else []))

    def on_end(outcome: RelayOutcome) -> None:
        size = outcome.source.size
        row, received = relay_figures(outcome, relayer.refused), outcome.source.counters.bytes_in
        session.record(row, received, size, relay_sides(outcome), relayer.served)

    def look() -> tuple[int, int, float]:
        received, stored = relayer.moved
        return session.bytes_in + received, session.bytes_out + stored, relayer.fullness

    def present() -> Present:
        side = Side(relayer.moved[1], relayer.counters)
        return Present(relayer.served, relayer.refused, relayer.source.probes, {"source": side})

    async def work() -> None:
        relayer.on_end = on_end
        async with relayer:
            with session.announced((relayer.source, listens, listens.tls)):
                await relayer.serve()

    return session.run(work, relayer.stop, look, progress_line, present, renewal=Renewal([relayer.source]))


def run_save_to_log(
    endpoint: str, input_: str, path: str, ours: dict[str, Any], *, option: str = "--input", **options: Any
) -> int:
    """Run `ringmain save` into a log; return the exit code. `option` is what `input_` was given as."""
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.session import Session
    from ringmain.cli.stats import Present, Side, figures
    from ringmain.engines.nats_save import save_to_log
    from ringmain.flow.descriptor import open_input
    from ringmain.progress import progress_line

    session = Session(options)
    _refuse(options, "listen", "listen_once", "reconnect")
    if options["max_connections"] > 1:
        why = "there is but one connection"
        raise UsageError(f"max_connections={options['max_connections']}", why, "leave it out")
    _check_path(path)
    for name in ("max_connections", "slow", "client_buffer"):
        options.pop(name, None)
    session.check_reloading()
    saver = save_to_log(endpoint, cutting=_cutting(ours), **ours, **options)
    source = open_input(input_, option)

    def look() -> tuple[int, int, float]:
        return saver.counters.bytes_in, saver.stored, saver.fullness

    over = False

    def present() -> Present:
        return Present(int(not over), 0, 0, {"": Side(0, None) if over else Side(saver.stored, saver.counters)})

    async def work() -> None:
        nonlocal over
        error: RingmainError | None = None
        try:
            async with saver:
                with session.announced():
                    try:
                        await saver.send(source)
                    except RingmainError as failure:
                        error = failure
                        raise
                    finally:
                        outcome = saver.outcome(error)
                        over, sides = True, {"": Side.of(outcome)}
                        session.record(figures(outcome, 0), saver.counters.bytes_in, saver.stored, sides)
        finally:
            source.close()

    def stop() -> bool:
        source.stop()
        return True

    return session.run(work, stop, look, progress_line, present, renewal=Renewal([]))
