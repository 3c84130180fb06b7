"""Read `tcp://host:port`, `unix:/path` or `nats://host:port/NAME`, and write it back. Pure: it resolves nothing."""

import os
import re
from dataclasses import dataclass, field

from ringmain.errors import UsageError

_SHAPE = re.compile(
    r"(?:(?P<scheme>[^:/\[\]@]*)://)?(?:\[(?P<literal>[^\[\]@]*)\]|(?P<host>[^:/\[\]@]*)):(?P<port>[A-Za-z0-9_.+-]+)/?"
)
_EXAMPLE = "write tcp://HOST:PORT, tcps://HOST:PORT for TLS, or HOST:PORT, with an IPv6 address in [brackets]"
_UNIX_EXAMPLE = "write unix:/path/of/socket, or unix:@name for an abstract one"
# What sun_path of <sys/un.h> holds, with a zero at the end of a path, or before a name that is abstract.
_LONGEST_PATH = 107
# What follows is compiled by those who need it: that takes longer than all else which is done to an endpoint.
_LOG_SHAPE = r"(?P<scheme>(?i:nats|tls))://(?:(?P<user>.*)@)?(?P<servers>[^/@]+)/(?P<name>[^@\x00-\x20\x7f]+)"
_SERVER_SHAPE = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s\x00-\x20\x7f]+)(?::(?P<port>[0-9]{1,5}))?"
_LOG_EXAMPLE = "write nats://HOST:PORT/NAME, or tls:// for TLS, with further HOST:PORT after commas"
_NATS_PORT = 4222
# What others call TCP with TLS.
_TLS_SCHEMES = ("ssl", "tls", "tcp+tls", "tcp+ssl")
_HOST = r"\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+"


@dataclass(frozen=True)
class Endpoint:
    """Where to listen or connect: a host ("" is every interface), a port (number or service name), TLS or not.

    Or a UNIX socket: then `path` is its file, or "@name" where it is abstract, and host and port are "". Or, with the
    host "fd", sockets that a service manager has handed over: then the port is their name, or the number of one.
    """

    host: str
    port: str
    tls: bool = False
    path: str = ""

    @classmethod
    def parse(cls, text: str, default_port: str = "") -> "Endpoint":
        """Read an endpoint as users write it; raise UsageError with the remedy when it is malformed.

        A host alone has the `default_port`, if there is one.
        """
        what = f"endpoint {without_secrets(text)!r}"
        if is_log(text):
            scheme, _, rest = text.partition("://")
            is_server = scheme.lower() == "tls" and re.fullmatch(r"[^/@]+:\d+/?", rest)
            remedy = f"write tcps://{rest} for TLS" if is_server else _EXAMPLE
            raise UsageError(what, "a NATS server cannot be used here", remedy)
        if text.startswith("unix:"):
            return cls("", "", path=_path_of(text, what))
        match = _SHAPE.fullmatch(text)
        if match is None and default_port and _lacks_port(text):
            match = _SHAPE.fullmatch(f"{text.rstrip('/')}:{default_port}")
        if match is None:
            raise UsageError(what, *_guess(text))
        scheme, port = match["scheme"], match["port"]
        if scheme not in (None, "tcp", "tcps"):
            meant = f"write {text.replace(scheme, 'tcps', 1)} for TLS" if scheme in _TLS_SCHEMES else _EXAMPLE
            raise UsageError(what, f"unknown scheme {scheme!r}", meant)
        host = match["host"] if match["literal"] is None else match["literal"]
        if any(it.isspace() or it <= " " or it == "\x7f" for it in host + port):
            raise UsageError(what, "it has a blank or a control character in it", _EXAMPLE)
        if match["literal"] is not None and ":" not in host:
            raise UsageError(what, "brackets are for IPv6 addresses only", _EXAMPLE)
        is_number = port.isdecimal() and len(port) < 10  # of more digits than int() takes there is no port
        if host != "fd" and port.lstrip("+-").isdecimal() and not (is_number and int(port) <= 65535):
            raise UsageError(what, f"port {port} is not between 0 and 65535", "choose another")
        return cls(host, port, scheme == "tcps")

    @property
    def handed_over(self) -> bool:
        """Whether it is listened at already, by a service manager's doing."""
        return self.host == "fd"

    @property
    def address(self) -> str:
        """The host and port, as "[::1]:80"; of a UNIX socket "unix:/path"."""
        return f"unix:{self.path}" if self.path else host_and_port(self.host, self.port)

    def __str__(self) -> str:
        return as_url(self.address, tls=self.tls)


def _lacks_port(text: str) -> bool:
    """Tell whether this is a host, with or without a scheme, and nothing else; a number alone is a port."""
    host = text.rpartition("://")[2].rstrip("/")
    return re.fullmatch(_HOST, host) is not None and not host.isdigit()


def _guess(text: str) -> tuple[str, str]:
    """Return what is wrong with a text that is no endpoint, and what its writer may have meant."""
    scheme, _, rest = text.rpartition("://")
    scheme = scheme or "tcp"
    if "@" in text or scheme not in ("tcp", "tcps"):  # there may be a password in it
        return "not understood", _EXAMPLE
    if rest.isascii() and rest.isdigit():
        return "a port without a host", f"write {scheme}://127.0.0.1:{rest}, or {scheme}://:{rest} for every interface"
    if _lacks_port(rest.rstrip(":")):
        return "it has no port", f"write {scheme}://{rest.rstrip(':/')}:PORT"
    if "/" in text and "://" not in text:
        return "a path without a scheme", f"write unix:{text} for the UNIX socket of that name"
    if (match := re.fullmatch(r"([^/]+:\w+)/.+", rest)) is not None:
        return "a TCP endpoint has no path", f"write {scheme}://{match[1]}"
    return "not understood", _EXAMPLE


def _path_of(text: str, what: str) -> str:
    """Return the path of a UNIX socket, or its abstract name with "@" before it; raise UsageError."""
    path = text.removeprefix("unix:")
    if path.startswith("///"):  # as other programs write URLs of files
        path = path[2:]
    if path.startswith("//") and path.strip("/@") and not path.endswith("/"):
        name = path[2:]
        why = "one slash or three, not two, come before a socket's path"
        raise UsageError(what, why, f"write unix:/{name}, or unix:{name} for one in the working directory")
    if path in ("", "@") or path.startswith("//") or path.endswith("/"):
        raise UsageError(what, "it names no socket", _UNIX_EXAMPLE)
    if "\0" in path:
        raise UsageError(what, "it has a zero byte in it", _UNIX_EXAMPLE)
    if (size := len(os.fsencode(path))) > _LONGEST_PATH:
        why = f"it has {size} bytes, and the name of a UNIX socket has {_LONGEST_PATH} at most"
        raise UsageError(what, why, "choose a shorter path")
    return path


def as_url(address: str, *, tls: bool) -> str:
    """Return an `Endpoint.address` as the endpoint that users would write."""
    return address if address.startswith("unix:") else f"{'tcps' if tls else 'tcp'}://{address}"


@dataclass(frozen=True)
class LogEndpoint:
    """A stream, or a subject, of a NATS cluster: `servers` are "host:port" of one or more that know it.

    With `tls` a server that offers no TLS is left; without, TLS is used where the server wants it. `user` without a
    password is a token. None of the secrets is written back.
    """

    servers: tuple[str, ...]
    name: str
    tls: bool = False
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> "LogEndpoint":
        """Read an endpoint as users of NATS write it, names after the last server; raise UsageError with the remedy."""
        from urllib.parse import unquote  # which nothing else here needs

        what = f"endpoint {without_secrets(text)!r}"
        match = re.fullmatch(_LOG_SHAPE, text)
        if match is None:
            scheme, _, rest = text.partition("://")
            server = rest.rstrip("/")
            if re.fullmatch(r"[^/@]+", server) is None or re.fullmatch(_SERVER_SHAPE, server) is None:
                raise UsageError(what, "not understood", _LOG_EXAMPLE)
            remedy = f"write {scheme}://{server}/NAME"
            if scheme.lower() == "tls":
                remedy += f", or tcps://{server} for TLS without NATS"
            raise UsageError(what, "it names no NATS stream or subject", remedy)
        servers = []
        for server in match["servers"].split(","):
            parts = re.fullmatch(_SERVER_SHAPE, server)
            if parts is None or (parts["port"] and not 0 < int(parts["port"]) <= 65535):
                raise UsageError(what, f"{server!r} is not a server's HOST:PORT", _LOG_EXAMPLE)
            servers.append(f"{parts['host']}:{parts['port'] or _NATS_PORT}")
        user, colon, password = (match["user"] or "").partition(":")
        if match["user"] is not None and not user:
            raise UsageError(what, "nothing before the @", "write user:password@ or token@, or leave the @ out")
        secret = unquote(password) if colon else None
        return cls(tuple(servers), match["name"], match["scheme"].lower() == "tls", unquote(user) or None, secret)

    @property
    def cluster(self) -> str:
        """The servers, as "nats://a:4222,b:4222"."""
        return f"{'tls' if self.tls else 'nats'}://{','.join(self.servers)}"

    def __str__(self) -> str:
        return f"{self.cluster}/{self.name}"


def is_log(text: str) -> bool:
    """Tell whether an endpoint is that of a distributed log, and not one of TCP."""
    return text.lower().startswith(("nats://", "tls://"))


def without_secrets(text: str) -> str:
    """Return what somebody took for an endpoint, with dots for all before its last @; a UNIX socket has its @ itself.

    Nothing tells what was meant by a text that is none, so that no part of it counts as harmless.
    """
    return text if text.startswith("unix:") else re.sub(r"^(\w*:/+)?.*@", r"\1...@", text, flags=re.DOTALL)


def host_and_port(host: str, port: str | int) -> str:
    """Join host and port the way they are read back, IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain_address(host: str, port: int) -> str:
    """Return how an end of a connection is called; at a socket for both, which has ::ffff:192.0.2.1, by IPv4 too."""
    return host_and_port(host.removeprefix("::ffff:") if "." in host else host, port)
