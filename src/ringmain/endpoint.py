"""Read `tcp://host:port` or `unix:/path` and write it back. Pure: nothing is resolved here."""

import os
import re
from dataclasses import dataclass

from ringmain.errors import UsageError

_SHAPE = re.compile(
    r"(?:(?P<scheme>[^:/\[\]]*)://)?(?:\[(?P<literal>[^\[\]]*)\]|(?P<host>[^:/\[\]]*)):(?P<port>[A-Za-z0-9_.+-]+)/?"
)
_EXAMPLE = "write tcp://HOST:PORT, tcps://HOST:PORT for TLS, or HOST:PORT, with an IPv6 address in [brackets]"
_UNIX_EXAMPLE = "write unix:/path/of/socket, or unix:@name for an abstract one"
# What sun_path of <sys/un.h> holds, with a zero at the end of a path, or before a name that is abstract.
_LONGEST_PATH = 107


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
    def parse(cls, text: str) -> "Endpoint":
        """Read an endpoint as users write it; raise UsageError with the remedy when it is malformed."""
        what = f"endpoint {text!r}"
        if text.startswith("unix:"):
            return cls("", "", path=_path_of(text, what))
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise UsageError(what, "not understood", _EXAMPLE)
        scheme, port = match["scheme"], match["port"]
        if scheme not in (None, "tcp", "tcps"):
            raise UsageError(what, f"unknown scheme {scheme!r}", _EXAMPLE)
        host = match["host"] if match["literal"] is None else match["literal"]
        if re.search(r"\s|[^\x21-\x7e\u0080-\U0010ffff]", host + port):
            raise UsageError(what, "blanks and control characters have no place in it", _EXAMPLE)
        if match["literal"] is not None and ":" not in host:
            raise UsageError(what, "only an IPv6 address stands in brackets", _EXAMPLE)
        if (
            host != "fd"
            and re.fullmatch(r"[+-]?\d+", port)
            and not (port.isascii() and port.isdigit() and int(port) <= 65535)
        ):
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


def _path_of(text: str, what: str) -> str:
    """Return the path of a UNIX socket, or its abstract name with "@" before it; raise UsageError."""
    path = text.removeprefix("unix:")
    if path.startswith("///"):  # as other programs write URLs of files
        path = path[2:]
    if path in ("", "@") or path.startswith("//") or path.endswith("/"):
        raise UsageError(what, "it names no socket", _UNIX_EXAMPLE)
    if "\0" in path:
        raise UsageError(what, "a zero byte has no place in it", _UNIX_EXAMPLE)
    if (size := len(os.fsencode(path))) > _LONGEST_PATH:
        why = f"it has {size} bytes, and the name of a UNIX socket has {_LONGEST_PATH} at most"
        raise UsageError(what, why, "choose a shorter path")
    return path


def as_url(address: str, *, tls: bool) -> str:
    """Return an `Endpoint.address` as the endpoint that users would write."""
    return address if address.startswith("unix:") else f"{'tcps' if tls else 'tcp'}://{address}"


def host_and_port(host: str, port: str | int) -> str:
    """Join host and port the way they are read back, IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
