"""The network interfaces of this machine: what psutil says, and Linux's sysfs where psutil is silent."""

import socket
from pathlib import Path
from typing import TypedDict

from ringmain.errors import RingmainError, UsageError, reason

_SYSFS = Path("/sys/class/net")


class Nic(TypedDict):
    """One interface. `speed` is Mbit/s; None stands for what the system does not tell."""

    name: str
    description: str | None
    ipv4: list[str]
    ipv6: list[str]
    mac: str | None
    loopback: bool
    up: bool
    running: bool
    wireless: bool
    status: str
    speed: int | None
    mtu: int | None


def nics() -> list[Nic]:
    """Return the interfaces in the system's order.

    `up` is the administrator's wish, `running` says that packets can pass. `status` is "connected", "disconnected",
    "unknown", or "not applicable" for a loopback interface. Raises UsageError where psutil is not installed, and
    RingmainError where the system does not tell.
    """
    try:
        import psutil
    except ImportError as error:
        raise UsageError("nics()", "it needs psutil", "pip install 'ringmain[cli]'") from error

    try:
        stats, all_addresses = psutil.net_if_stats(), psutil.net_if_addrs()
    except OSError as error:
        raise RingmainError(
            "list the interfaces", f"{error.filename}: {reason(error)}", "see that /proc is mounted"
        ) from error
    found: list[Nic] = []
    for name, addresses in all_addresses.items():
        stat = stats.get(name)
        flags = set(stat.flags.split(",")) if stat else set()
        loopback, up = "loopback" in flags, "up" in flags
        by_family = {
            family: [row.address for row in addresses if row.family == family]
            for family in (socket.AF_INET, socket.AF_INET6, psutil.AF_LINK)
        }
        found.append(
            Nic(
                name=name,
                description=_description(name),
                ipv4=by_family[socket.AF_INET],
                ipv6=[address.partition("%")[0] for address in by_family[socket.AF_INET6]],
                mac=next((mac for mac in by_family[psutil.AF_LINK] if not loopback), None),
                loopback=loopback,
                up=up,
                running="running" in flags,
                wireless=(_SYSFS / name / "wireless").exists() or (_SYSFS / name / "phy80211").exists(),
                status=_status(name, loopback, up),
                speed=(stat.speed or None) if stat else None,
                mtu=stat.mtu if stat else None,
            )
        )
    return found


def _status(name: str, loopback: bool, up: bool) -> str:
    if loopback:
        return "not applicable"
    carrier = _sysfs(name, "carrier")  # unreadable while the interface is down
    if carrier is None:
        return "unknown" if up else "disconnected"
    return "connected" if carrier == "1" else "disconnected"


def _description(name: str) -> str | None:
    """Return the alias that an administrator gave, or the driver of the device behind the interface."""
    alias = _sysfs(name, "ifalias")
    if alias:
        return alias
    driver = _SYSFS / name / "device" / "driver"
    return driver.resolve().name if driver.exists() else None


def _sysfs(name: str, attribute: str) -> str | None:
    try:
        return (_SYSFS / name / attribute).read_text(encoding="utf-8", errors="backslashreplace").strip()
    except OSError:
        return None
