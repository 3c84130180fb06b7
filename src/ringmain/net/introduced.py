"""Who a peer is, by what goes before its first byte."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ringmain.net.proxy import Told


class Introduced(NamedTuple):
    """A `peer`, as `told` by a PROXY header that `proxy` sent."""

    peer: str
    proxy: str | None = None
    told: "Told | None" = None


# Of a peer that nothing went before.
NOT_TOLD = Introduced("")
