"""Who may connect: the networks of `allow`."""

import ipaddress
from collections.abc import Sequence

from ringmain.errors import UsageError


class Allowed:
    """The networks whose addresses may connect; without any, everybody may."""

    def __init__(self, allow: Sequence[str]) -> None:
        """Raise UsageError for what is no network."""
        try:
            self._networks = [ipaddress.ip_network(text, strict=False) for text in allow]
        except ValueError as error:
            raise UsageError(f"allow={error}", "", "write it as 192.0.2.0/24 or 2001:db8::/32") from error

    def has(self, host: str) -> bool:
        """Tell whether an address may connect; one of IPv4 that came by way of IPv6 is told by its own network."""
        if not self._networks:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network or address in network for network in self._networks)
