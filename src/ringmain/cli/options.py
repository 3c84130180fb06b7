"""The options that the verbs share, and the types of their values."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ringmain import __version__
from ringmain.settings import GATES, TlsSettings

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]


class Duration(click.ParamType[float | None]):
    """500ms, 5s, 2m, 1h, or off; a bare number is seconds. Converts to float seconds, off to None."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return the seconds."""
        if value is None or not isinstance(value, str):
            return None if value is None else float(value)
        if value == "off":
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", value)
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a duration: write 500ms, 5s, 2m or off", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Linger(Duration):
    """A duration that may be 0, which off is too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        is_zero = isinstance(value, str) and re.fullmatch(r"0+(?:\.0+)?(ms|s|m|h|)", value)
        return 0.0 if is_zero else super().convert(value, param, ctx) or 0.0


class Size(click.ParamType[int]):
    """A number of bytes: 1500, 64K, 1M, 10G, in powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", value)
        size = int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " ")) if match else 0
        if size < 1:
            self.fail(f"{value!r} is not a size: write 1500, 64K, 1M or 10G", param, ctx)
        return size


class Percentage(click.ParamType[float]):
    """5%, which converts to 0.05."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the part of one."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", value)
        if match is None or not 0 < float(match[1]) < 100:
            self.fail(f"{value!r} is not a percentage: write 5%", param, ctx)
        return float(match[1]) / 100


class Retries(click.ParamType[int]):
    """A count, or forever, which converts to -1."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the count."""
        if value == "forever":
            return -1
        if not re.fullmatch(r"\d+", str(value)):
            self.fail(f"{value!r} is not a count: write a number or forever", param, ctx)
        return int(value)


DURATION = Duration()
TLS_OPTIONS = [field.name for field in dataclasses.fields(TlsSettings)]


# A keyword in an error line of the library: idle_timeout=, listen_once=True, path=kernel, source_tls.cafile=.
_KEYWORD = re.compile(r"\b(?:(source|destination)_tls\.)?([a-z][a-z0-9_]*)=(?:True\b|(?=[^\s.,:;)?])(?P<value>))?")


def as_flags(line: str) -> str:
    """Name the flags where a line of the library names its keywords."""

    def flag(match: re.Match[str]) -> str:
        name = "_".join(filter(None, match.group(1, 2)))
        if name not in _flag_names():
            return match[0]
        return f"--{name.replace('_', '-')}" + (" " if match["value"] is not None else "")

    return _KEYWORD.sub(flag, line)


@functools.cache
def _flag_names() -> set[str | None]:
    from ringmain.cli import cli

    return {option.name for command in cli.commands.values() for option in command.params}


def _tls_options(whose: str = "") -> list[Decorator]:
    """Return the options of one end's TLS; `whose` end, where there are two."""

    def option(name: str, text: str, **kind: Any) -> Decorator:
        flag = f"--{whose}-{name}" if whose else f"--{name}"
        return click.option(flag, help=f"{whose.upper()}: {text}" if whose else text, **kind)

    return [
        option("certfile", "Our certificate chain; may hold the key too.", metavar="PEM"),
        option("keyfile", "Our private key, if it is not in the certfile.", metavar="PEM"),
        option("cafile", "Authorities to trust instead of the system's, when connecting.", metavar="PEM"),
        option("client-ca", "Require clients to have a certificate of these authorities.", metavar="PEM"),
        option("server-name", "Name to ask for and verify, if it is not the endpoint's host.", metavar="NAME"),
        option("min-tls-version", "Oldest TLS.", type=click.Choice(["1.2", "1.3"]), default="1.2", show_default=True),
        option("ciphers", "TLS 1.2 cipher suites, in OpenSSL's notation.", metavar="LIST"),
        option("tls13-ciphers", "TLS 1.3 cipher suites: TLS_AES_128_GCM_SHA256:...", metavar="LIST"),
        option("insecure", "Do not verify the server's certificate.", is_flag=True),
        option("self-signed", "Listen with a certificate made for this run.", is_flag=True),
    ]


_LINGER = click.option(
    "--linger",
    type=Linger(),
    default="1ms",
    show_default=True,
    help="How long a byte may wait for others in a flood, which saves CPU; 0 is not at all.",
)
_TIMEOUTS = [
    click.option(
        "--connect-timeout", type=DURATION, default="5s", show_default=True, help="Limit for resolving and connecting."
    ),
    click.option(
        "--handshake-timeout",
        type=DURATION,
        default="5s",
        show_default=True,
        help="Limit for TLS handshakes, and for a silent client while another one waits.",
    ),
]
_TRIES = [
    click.option(
        "--retry", type=Retries(), metavar="N|forever", default="0", show_default=True, help="Try to connect again."
    ),
    click.option(
        "--keepalive", type=DURATION, default="60s", show_default=True, help="Probe a silent peer after this."
    ),
]
_PORT_FILE = click.option("--port-file", metavar="FILE", help="Write the port listened at here, remove it at exit.")
_FAMILY = [
    click.option("-4", "family", flag_value=4, type=int, help="IPv4 only."),
    click.option("-6", "family", flag_value=6, type=int, help="IPv6 only."),
]
_LOUDNESS = [
    click.option("-q", "--quiet", is_flag=True, help="Errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Tell when connections start and end."),
    click.option("--progress/--no-progress", default=None, help="Show progress; the default if stderr is a terminal."),
    click.version_option(__version__, prog_name="ringmain", message="%(prog)s %(version)s"),
]
_CONNECTION = [
    *_TIMEOUTS,
    click.option(
        "--idle-timeout",
        type=DURATION,
        default="off",
        show_default=True,
        help="End a connection whose peer stands still.",
    ),
    *_TRIES,
    click.option(
        "--gate",
        type=click.Choice(list(GATES)),
        default="hold",
        show_default=True,
        help="While one client is served, others cannot connect, wait connected, or are reset.",
    ),
    click.option("--allow", metavar="CIDR", multiple=True, help="Serve clients of this network only; may be repeated."),
    click.option(
        "--path",
        type=click.Choice(["auto", "kernel", "block"]),
        default="auto",
        show_default=True,
        help="Move bytes inside the kernel (splice, sendfile), or through blocks in memory.",
    ),
    _PORT_FILE,
    click.option("--stats-file", metavar="FILE", help="Append one JSON object here for each connection."),
    *_FAMILY,
    *_LOUDNESS,
]
_TLS = click.option("--tls", is_flag=True, help="Protect the connection with TLS, as a tcps:// endpoint does.")


def _decorated(command: Command, decorators: list[Decorator]) -> Command:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def linger(command: Command) -> Command:
    """Give a command that receives from sockets --linger."""
    return _decorated(command, [_LINGER])


def one_end(command: Command) -> Command:
    """Give a command an endpoint, its TLS, and what every connection has."""
    return _decorated(command, [click.argument("endpoint"), _TLS, *_tls_options(), *_CONNECTION])


def two_ends(command: Command) -> Command:
    """Give a command a source and a destination, the TLS of each, and what every connection has."""
    tls = [*_tls_options("source"), *_tls_options("destination")]
    return _decorated(command, [click.argument("source"), click.argument("destination"), *_CONNECTION, *tls])


def forms(command: Command) -> Command:
    """Give a command the forms of its result."""
    return _decorated(
        command,
        [
            click.option("--json", is_flag=True, help="Print one JSON object, with iperf3's names."),
            click.option("--json-stream", is_flag=True, help="Print JSON events, the last one with the whole result."),
        ],
    )


def endpoint_of_bench(*, required: bool) -> Callable[[Command], Command]:
    """Give a command an endpoint, its TLS, and what a measured connection has."""
    options = [*_TIMEOUTS, *_TRIES, _PORT_FILE, *_FAMILY, *_LOUDNESS]

    def decorate(command: Command) -> Command:
        return _decorated(command, [click.argument("endpoint", required=required), _TLS, *_tls_options(), *options])

    return decorate
