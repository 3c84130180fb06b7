"""Read `tcp://host:port` and write it back. Pure: nothing is resolved here."""

import re
from dataclasses import dataclass

from ringmain.errors import UsageError

_SHAPE = re.compile(
    r"(?:(?P<scheme>[^:/\[\]]*)://)?(?:\[(?P<literal>[^\[\]]*)\]|(?P<host>[^:/\[\]]*)):(?P<port>[A-Za-z0-9_.+-]+)/?"
)
_EXAMPLE = "write tcp://HOST:PORT, tcps://HOST:PORT for TLS, or HOST:PORT, with an IPv6 address in [brackets]"


@dataclass(frozen=True)
class Endpoint:
    """Where to listen or connect: a host ("" is every interface), a port (number or service name), TLS or not."""

    host: str
    port: str
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read an endpoint as users write it; raise UsageError with the remedy when it is malformed."""
        what = f"endpoint {text!r}"
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
        if re.fullmatch(r"[+-]?\d+", port) and not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise UsageError(what, f"port {port} is not between 0 and 65535", "choose another")
        return cls(host, port, scheme == "tcps")

    @property
    def address(self) -> str:
        """The host and port, as "[::1]:80"."""
        return host_and_port(self.host, self.port)

    def __str__(self) -> str:
        return f"{'tcps' if self.tls else 'tcp'}://{self.address}"


def host_and_port(host: str, port: str | int) -> str:
    """Join host and port the way they are read back, IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
