"""What a caller may choose, in one place for all verbs, and every default. Each field is a keyword and a flag."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, TypedDict, TypeGuard, get_args

from ringmain.errors import UsageError
from ringmain.keywords import with_keywords

GATES = ("hold", "queue", "refuse")
SLOW = ("wait", "drop")
PATHS = ("auto", "kernel", "block")
Framing: TypeAlias = Literal[
    "octet-counting",
    "length:1be",
    "length:1le",
    "length:2be",
    "length:2le",
    "length:4be",
    "length:4le",
    "length:8be",
    "length:8le",
    "nul",
    "crlf",
]
FRAMINGS: tuple[str, ...] = get_args(Framing)
TLS_VERSIONS = ("1.2", "1.3")
CLIENT_CERTS = ("optional", "required")

# What is not about a connection: how bytes are received (bytes, bytes, bytes, seconds), and moved to a descriptor; the
# buffer of a file. A ring whose blocks are larger holds eight of them: flow.blocks.
RING_SIZE = 8 << 20
BLOCK_SIZE = 1 << 20
MAX_RECORD = 64 << 20
LONG_RECORDS: Literal["raise", "skip"] = "raise"
# Where many connections are served at once: what their records end at and how long one may be, and the blocks, four of
# them, of one that has a ring of its own.
DELIMITER = b"\n"
MERGED_RECORD = 1 << 20
SMALL_BLOCK = 256 << 10
LINGER = 0.001
# What goes to a log: the bytes of a message, and those that are sent and not acknowledged.
MESSAGE_SIZE = 256 << 10
MAX_IN_FLIGHT = 16 << 20
# The processes that `ringmain load` serves its clients in.
PROCESSES = 1
MOST_PROCESSES = 128
PATH = "auto"
BUFFER_SIZE = 64 << 10

# What is asked of a peer's certificate: without TLS each would be a promise that nobody keeps.
_ASKED_OF_PEERS = ("client_ca", "crl", "fingerprint")

_LONGEST_KEEPALIVE = 32767  # MAX_TCP_KEEPIDLE, <net/tcp.h>


class ConnectionOptions(TypedDict, total=False):
    """The keywords that all verbs share, with their defaults. None is off, or leaves it to the system.

    connect_timeout (5.0): seconds to resolve a name and to connect
    handshake_timeout (5.0): seconds for a TLS handshake, and for a client that sends nothing while another one waits
    idle_timeout (None): seconds after which a connection ends on which nothing moves
    retry (0): how often a failed connect is tried again, after pauses from 100 ms to 5 s; -1 is for ever
    keepalive (60.0): seconds of silence before the peer is probed; a peer that answers no probe for about as long is
        lost
    gate ("hold"): what happens to other clients: with "hold" they cannot connect, with "queue" they connect and wait,
        with "refuse" they are reset
    allow (()): the networks whose clients are served, one or several, as "10.0.0.0/8"; () is all
    reuse_port (False): share the port with other listeners that set SO_REUSEPORT; the kernel picks one of them for each
        client by its address, which spreads few clients unevenly
    family (0): 4 or 6 for one version of IP only, 0 for both
    socket_mode (None): the mode of a listening UNIX socket's file, as 0o660; None lets the umask decide
    socket_owner (None): its owner, as "USER", "USER:GROUP" or ":GROUP"
    """

    connect_timeout: float | None
    handshake_timeout: float | None
    idle_timeout: float | None
    retry: int
    keepalive: float | None
    gate: Literal["hold", "queue", "refuse"]
    allow: str | Sequence[str]
    reuse_port: bool
    family: Literal[0, 4, 6]
    socket_mode: int | None
    socket_owner: str | None


class TlsOptions(TypedDict, total=False):
    """The keywords that choose how a connection is protected, with their defaults.

    tls (False): protect the connection with TLS, as a tcps:// endpoint does
    """

    tls: bool
    certfile: str | None
    keyfile: str | None
    key_password_file: str | None
    cafile: str | None
    client_ca: str | None
    client_cert: Literal["optional", "required"]
    crl: str | None
    fingerprint: str | Sequence[str]
    server_name: str | None
    min_tls_version: Literal["1.2", "1.3"]
    ciphers: str | None
    tls13_ciphers: str | None
    alpn: str | Sequence[str]
    insecure: bool
    self_signed: bool
    tls_auto: bool


class Options(ConnectionOptions, TlsOptions, total=False):
    """The keywords that `load`, `save`, `connect`, `serve` and `open` share, with their defaults."""


class LogOptions(TlsOptions, total=False):
    """The keywords for NATS servers, with their defaults: those of TLS, and these.

    connect_timeout (5.0): seconds to connect, for each server
    idle_timeout (None): seconds to wait for a message
    retry (0): how often a failed connect is tried again; -1 is for ever
    keepalive (60.0): seconds after which the server is asked whether it is still there
    """

    connect_timeout: float | None
    idle_timeout: float | None
    retry: int
    keepalive: float | None


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """How a connection, or one end of a relay, is protected. Files are paths of PEM files.

    certfile (None): our certificate chain; the file may hold the key too
    keyfile (None): our private key, if certfile does not hold it
    key_password_file (None): a file whose first line is the password of an encrypted key; without it,
        RINGMAIN_KEY_PASSWORD in the environment is used
    cafile (None): CA certificates to trust instead of the system's, when connecting
    client_ca (None): clients must have a certificate from these CAs
    client_cert ("required"): with "optional" clients without a certificate are served too
    crl (None): revocation lists: the peer's own certificate must be in none, and its CA must have one there
    fingerprint (()): the SHA-256 of the peer's certificate in hexadecimal digits, with colons or without, or several of
        which one must match; without cafile or client_ca nothing else is checked: no CA, name or date
    server_name (None): the name to send (SNI) and to verify, if it is not the endpoint's host
    min_tls_version ("1.2"): the oldest version to accept, or "1.3"
    ciphers (None): cipher suites of TLS 1.2, in OpenSSL's notation
    tls13_ciphers (None): cipher suites of TLS 1.3, as "TLS_AES_128_GCM_SHA256:..."
    alpn (()): application protocols, best first: both sides have to agree on one
    insecure (False): do not verify the server's certificate
    self_signed (False): listen with a certificate made for this run (pip install 'ringmain[cli]')
    tls_auto (False): serve plain clients too; the first bytes, due within handshake_timeout, tell them apart
    """

    certfile: str | None = None
    keyfile: str | None = None
    key_password_file: str | None = None
    cafile: str | None = None
    client_ca: str | None = None
    client_cert: str = "required"
    crl: str | None = None
    fingerprint: str | Sequence[str] = ()
    server_name: str | None = None
    min_tls_version: str = "1.2"
    ciphers: str | None = None
    tls13_ciphers: str | None = None
    alpn: str | Sequence[str] = ()
    insecure: bool = False
    self_signed: bool = False
    tls_auto: bool = False

    def __new__(cls, **options: Any) -> Self:
        """Refuse unknown keywords in our own words."""
        check_keywords(options, [field.name for field in dataclasses.fields(cls)])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type in (bool, int, int | None):
                value = getattr(self, field.name)
                check_kind(field.name, value, bool if field.type is bool else int, or_none=field.type == int | None)
        _check("min_tls_version", self.min_tls_version, TLS_VERSIONS)
        _check("client_cert", self.client_cert, CLIENT_CERTS)
        given = (self.fingerprint,) if isinstance(self.fingerprint, str) else self.fingerprint
        object.__setattr__(self, "fingerprint", tuple(map(_fingerprint, given)))
        object.__setattr__(self, "alpn", (self.alpn,) if isinstance(self.alpn, str) else tuple(self.alpn))
        for name in self.alpn:
            if not (name.isascii() and 0 < len(name) < 256):
                raise UsageError(f"alpn={name!r}", "not 1 to 255 ASCII characters", "give a protocol's name, as h2")


TlsOptions.__doc__ = with_keywords(TlsOptions, TlsSettings)
LogOptions.__doc__ = with_keywords(LogOptions, TlsOptions)
Options.__doc__ = with_keywords(Options, ConnectionOptions, TlsOptions)


@dataclass(frozen=True, kw_only=True)
class Settings(TlsSettings):
    """`Options` with every default filled in and checked."""

    tls: bool = False
    # What error lines put before the keywords of TLS, where two ends have their own: "source_tls.".
    prefix: str = ""
    connect_timeout: float | None = 5.0
    handshake_timeout: float | None = 5.0
    idle_timeout: float | None = None
    retry: int = 0
    keepalive: float | None = 60.0
    gate: str = "hold"
    allow: str | Sequence[str] = ()
    reuse_port: bool = False
    family: int = 0
    socket_mode: int | None = None
    socket_owner: str | None = None
    max_connections: int = 1
    receive_buffer: int | None = None
    # What many clients of a saver do to one another, and how many bytes may be due to each.
    slow: Literal["wait", "drop"] = "wait"
    client_buffer: int = 16 << 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tls_auto:
            object.__setattr__(self, "tls", True)
        if isinstance(self.allow, str):
            object.__setattr__(self, "allow", (self.allow,))
        _check("gate", self.gate, GATES)
        _check("family", self.family, (0, 4, 6))
        _check("slow", self.slow, SLOW)
        if self.socket_mode is not None and not 0 <= self.socket_mode <= 0o777:
            raise UsageError(f"socket_mode={self.socket_mode:#o}", "not a socket's mode", "give one up to 0o777")
        if self.max_connections < 1:
            raise UsageError(f"max_connections={self.max_connections!r}", "nobody could be served", "give at least 1")
        if self.receive_buffer is not None and self.receive_buffer < 1:
            raise UsageError(f"receive_buffer={self.receive_buffer!r}", "not a number of bytes", "give at least 1")
        if self.client_buffer < 1:
            raise UsageError(f"client_buffer={self.client_buffer!r}", "it holds nothing", "give at least 1")
        for name in ("connect_timeout", "handshake_timeout", "idle_timeout", "keepalive"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise UsageError(
                    f"{name}={value!r}", "not a number of seconds", "give seconds above 0, or None for off"
                )
        if self.retry < -1:
            raise UsageError(f"retry={self.retry!r}", "not a number of tries", "give 0 or more, or -1 for ever")
        if self.keepalive is not None and self.keepalive > _LONGEST_KEEPALIVE:
            why = f"the kernel counts to {_LONGEST_KEEPALIVE} seconds at most"
            raise UsageError(f"keepalive={self.keepalive!r}", why, "give less, or turn it off")

    def check_count(self, *, connect: bool, listen_once: bool) -> None:
        """Raise UsageError where these contradict each other, or `max_connections`."""
        if connect and listen_once:
            remedy = "leave out connect=True, which always ends after one"
            raise UsageError("listen_once=True", "it needs a listener", remedy)
        if (connect or listen_once) and self.max_connections > 1:
            what = f"max_connections={self.max_connections} with {'connect=True' if connect else 'listen_once=True'}"
            raise UsageError(what, "there is only one connection", "leave one of them out")


def settings_for(verb: Callable[..., object], kind: type, options: Mapping[str, Any], **ours: Any) -> Settings:
    """Return the settings of a verb's other keywords, which are those of the TypedDict `kind`, and of `ours`."""
    parameters = inspect.signature(verb).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    given = [name for name in options if name != "prefix"]  # the command line's, where relay has but one end
    of_tls = {field.name for field in dataclasses.fields(TlsSettings)} - set(kind.__annotations__)
    if misplaced := of_tls.intersection(given):
        remedy = "give it in source_tls= or destination_tls="
        raise UsageError(f"keyword {min(misplaced)!r}", "each end has its own TLS", remedy)
    check_keywords(given, [*own, *kind.__annotations__])
    return Settings(**options, **ours)


def check_keywords(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for a keyword that nobody knows, with the nearest one as a remedy."""
    known = list(known)
    for name in given:
        if name not in known:
            import difflib

            nearest = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {nearest[0]}=?" if nearest else f"choose one of {', '.join(sorted(known))}"
            raise UsageError(f"keyword {name!r}", "not known", remedy)


def check_plain(options: Mapping[str, Any], prefix: str, remedy: str) -> None:
    """Raise UsageError for options that say whom to serve or trust, where nothing is encrypted and nobody is verified.

    Ignoring them would leave the door open that they are to close.
    """
    if asked := keywords_given(options, _ASKED_OF_PEERS, prefix):
        why = "this endpoint is plain TCP, which cannot verify a peer"
        raise UsageError(asked, why, f"give {remedy}, or leave it out")


def keywords_given(options: Mapping[str, Any], names: Iterable[str], prefix: str) -> str:
    """Return the keywords, as a line, of those options among `names` that are set."""
    return ", ".join(f"{prefix}{name}=" for name in names if options[name])


_KINDS = {bool: "True or False", int: "a whole number", bytes: "bytes", TlsSettings: "a ringmain.TlsSettings"}


def check_kind(name: str, value: object, kind: type, *, or_none: bool = False) -> None:
    """Raise UsageError for a value of another kind, which would fail, or wait for ever, far from who has given it."""
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if fits or (or_none and value is None):
        return
    remedy = "give -1 for ever" if name == "retry" else f"give {_KINDS[kind]}"
    raise UsageError(f"{name}={value!r}", f"not {_KINDS[kind]}", remedy)


def check_linger(linger: object) -> None:
    """Raise UsageError for what is no number of seconds from 0 up."""
    if not (_is_number(linger) and linger >= 0):
        raise UsageError(f"linger={linger!r}", "not a number of seconds", "give seconds, or 0 for off")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fingerprint(given: str) -> str:
    digits = given.replace(":", "").upper()
    if re.fullmatch("[0-9A-F]{64}", digits) is None:
        remedy = "see: openssl x509 -in ... -noout -fingerprint -sha256"
        raise UsageError(f"fingerprint={given!r}", "not the 64 hexadecimal digits of a SHA-256", remedy)
    return ":".join(digits[at : at + 2] for at in range(0, 64, 2))


def _check(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name}={value!r}", "not known", f"choose one of {', '.join(map(str, choices))}")
