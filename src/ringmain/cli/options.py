"""The options that the verbs share."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ringmain.cli.command import VERSION
from ringmain.cli.values import DURATION, END, ENDPOINT, FILE, Count, Duration, Linger, Mode, Retries
from ringmain.settings import CLIENT_CERTS, GATES, LINGER, PATH, PATHS, TLS_VERSIONS, Settings, TlsSettings

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

TLS_OPTIONS = [field.name for field in dataclasses.fields(TlsSettings)]


def _tls_options(whose: str = "", *, auto: bool = True) -> list[Decorator]:
    """Return the options of one end's TLS; `whose` end, where there are two; `auto` where plain clients can be told."""

    def option(name: str, text: str, **kind: Any) -> Decorator:
        flag = f"--{whose}-{name}" if whose else f"--{name}"
        return click.option(flag, help=f"{whose.upper()}: {text}" if whose else text, **kind)

    told_apart = option(
        "tls-auto", "Serve plain and TLS clients on one port; their first bytes tell them apart.", is_flag=True
    )
    return [
        option("certfile", "Our certificate chain; the file may hold the key too.", metavar="PEM", type=FILE),
        option("keyfile", "Our private key, if the certificate file does not hold it.", metavar="PEM", type=FILE),
        option(
            "key-password-file",
            "File whose first line is the password of an encrypted key. Without it, RINGMAIN_KEY_PASSWORD is used.",
            metavar="FILE",
            type=FILE,
        ),
        option(
            "cafile", "CA certificates to trust instead of the system's, when connecting.", metavar="PEM", type=FILE
        ),
        option("client-ca", "Require clients to have a certificate from these CAs.", metavar="PEM", type=FILE),
        option(
            "client-cert",
            "With --client-ca: whether a client must have a certificate.",
            type=click.Choice(CLIENT_CERTS),
            default=TlsSettings.client_cert,
            show_default=True,
        ),
        option("crl", "Revocation lists: refuse peers whose certificate is in them.", metavar="PEM", type=FILE),
        option(
            "fingerprint",
            "Accept only a peer whose certificate has this fingerprint; without a CA file nothing else is checked. May "
            "be repeated.",
            metavar="SHA256",
            multiple=True,
        ),
        option("server-name", "Name to send (SNI) and to verify, if it is not the endpoint's host.", metavar="NAME"),
        option(
            "min-tls-version",
            "Oldest TLS version to accept.",
            type=click.Choice(TLS_VERSIONS),
            default=TlsSettings.min_tls_version,
            show_default=True,
        ),
        option("ciphers", "TLS 1.2 cipher suites, in OpenSSL's notation.", metavar="LIST"),
        option("tls13-ciphers", "TLS 1.3 cipher suites: TLS_AES_128_GCM_SHA256:...", metavar="LIST"),
        option(
            "alpn",
            "Application protocol that both sides must agree on; may be repeated.",
            metavar="PROTO",
            multiple=True,
        ),
        option("insecure", "Do not verify the server's certificate.", is_flag=True),
        option("self-signed", "Listen with a certificate made for this run.", is_flag=True),
        *([told_apart] if auto else []),
    ]


def duration(flag: str, default: float | None, text: str) -> Decorator:
    """Return an option that is a duration."""
    return click.option(flag, type=DURATION, default=Duration.words(default), show_default=True, help=text)


_LINGER = click.option(
    "--linger",
    type=Linger(),
    default=Duration.words(LINGER),
    show_default=True,
    help="How long a byte may wait for more bytes in a flood, which saves CPU; 0 turns this off.",
)


def max_connections(text: str) -> Decorator:
    """Return --max-connections, with what it does for a verb."""
    return click.option(
        "--max-connections",
        metavar="N",
        type=Count(min=1),
        default=Settings.max_connections,
        show_default=True,
        help=text,
    )


_TIMEOUTS = [
    duration("--connect-timeout", Settings.connect_timeout, "Time limit for resolving and connecting."),
    duration(
        "--handshake-timeout",
        Settings.handshake_timeout,
        "Time limit for a TLS handshake, and for a silent client while another client waits.",
    ),
]
_TRIES = [
    click.option(
        "--retry",
        type=Retries(),
        metavar="N|forever",
        default=Settings.retry,
        show_default=True,
        help="How often to try again if connecting fails.",
    ),
    duration("--keepalive", Settings.keepalive, "Send probes to a peer that has been silent for this long."),
]
_PORT_FILE = click.option(
    "--port-file", metavar="FILE", type=FILE, help="Write the listening port to FILE, and remove FILE at exit."
)
_FAMILY = [
    click.option("-4", "family", flag_value=4, type=int, help="IPv4 only."),
    click.option("-6", "family", flag_value=6, type=int, help="IPv6 only."),
]
_LOUDNESS = [
    click.option(
        "-q", "--quiet", is_flag=True, help="Print errors only, and a warning if TLS options are given without TLS."
    ),
    click.option("-v", "--verbose", is_flag=True, help="Report when connections start and end, and the total moved."),
    click.option(
        "--progress/--no-progress",
        default=None,
        help="Show progress; the default if stderr is a terminal that carries no data.",
    ),
    VERSION,
]
_CONNECTION = [
    *_TIMEOUTS,
    duration("--idle-timeout", Settings.idle_timeout, "End a connection on which nothing moves for this long."),
    *_TRIES,
    click.option(
        "--gate",
        type=click.Choice(GATES),
        default=Settings.gate,
        show_default=True,
        help="While one client (or N) is served, others cannot connect (hold), connect and wait (queue), or are reset.",
    ),
    click.option("--allow", metavar="CIDR", multiple=True, help="Serve clients of this network only; may be repeated."),
    click.option(
        "--reuse-port",
        is_flag=True,
        help="Share the port with other listeners that set SO_REUSEPORT; the kernel spreads clients unevenly.",
    ),
    click.option("--socket-mode", metavar="OCTAL", type=Mode(), help="Mode of a listening UNIX socket, such as 0660."),
    click.option("--socket-owner", metavar="USER[:GROUP]", help="Owner of a listening UNIX socket."),
    click.option(
        "--path",
        type=click.Choice(PATHS),
        default=PATH,
        show_default=True,
        help="Move bytes inside the kernel (splice, sendfile) or through blocks in memory; auto is kernel if possible.",
    ),
    _PORT_FILE,
    click.option(
        "--stats-file",
        metavar="FILE",
        type=FILE,
        help="Append one JSON object to FILE for each connection or failed handshake.",
    ),
    click.option(
        "--metrics",
        metavar="HOST:PORT",
        help="Serve metrics for Prometheus at http://HOST:PORT/metrics; let nobody else reach it. Needs "
        "ringmain[metrics].",
    ),
    duration(
        "--reload-certificates",
        None,
        "Check this often whether certificate, key or CA files have changed, and read those again; SIGHUP does so at "
        "once.",
    ),
    *_FAMILY,
    *_LOUDNESS,
]
_TLS = click.option("--tls", is_flag=True, help="Use TLS, as a tcps:// endpoint does.")


def decorated(command: Command, decorators: list[Decorator]) -> Command:
    """Give a command options, in this order."""
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def totals(command: Command) -> Command:
    """Give a command --stats-interval."""
    text = "Append a row of totals to the stats file this often, and one at the end."
    return decorated(command, [duration("--stats-interval", None, text)])


def linger(command: Command) -> Command:
    """Give a command that receives from sockets --linger."""
    return decorated(command, [_LINGER])


def one_end(command: Command) -> Command:
    """Give a command an endpoint, its TLS, and what every connection has."""
    return decorated(command, [click.argument("endpoint", type=ENDPOINT), _TLS, *_tls_options(), *_CONNECTION])


def two_ends(command: Command) -> Command:
    """Give a command a source and a destination, the TLS of each, and what every connection has."""
    tls = [*_tls_options("source"), *_tls_options("destination")]
    return decorated(
        command, [click.argument("source", type=END), click.argument("destination", type=END), *_CONNECTION, *tls]
    )


def forms(command: Command) -> Command:
    """Give a command the forms of its result."""
    return decorated(
        command,
        [
            click.option("--json", is_flag=True, help="Print one JSON object, with iperf3's field names."),
            click.option(
                "--json-stream",
                is_flag=True,
                help="Print JSON events while measuring; the last one has the whole result.",
            ),
        ],
    )


def endpoint_of_bench(*, required: bool) -> Callable[[Command], Command]:
    """Give a command an endpoint, its TLS, and what a measured connection has."""
    options = [*_TIMEOUTS, *_TRIES, _PORT_FILE, *_FAMILY, *_LOUDNESS]

    def decorate(command: Command) -> Command:
        return decorated(
            command,
            [click.argument("endpoint", type=ENDPOINT, required=required), _TLS, *_tls_options(auto=False), *options],
        )

    return decorate
