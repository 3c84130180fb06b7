"""ringmain nics."""

import json

import click

from ringmain.cli.command import Command
from ringmain.errors import printable
from ringmain.terminal import columns, table


@click.command(cls=Command)
@click.option("--json", "as_json", envvar="RINGMAIN_NICS_JSON", is_flag=True, help="Print one JSON object per line.")
def nics(as_json: bool) -> None:
    """List the network interfaces of this machine."""
    from ringmain.interfaces import Nic
    from ringmain.interfaces import nics as list_nics

    found = list_nics()
    if as_json:
        for nic in found:
            click.echo(json.dumps(nic))
        return

    def row(nic: Nic) -> tuple[str, ...]:
        kinds = [name for name in ("loopback", "wireless", "up", "running") if nic[name]]
        speed = f"{nic['speed']} Mbit/s" if nic["speed"] else "-"
        addresses = " ".join([*nic["ipv4"], *nic["ipv6"]]) or "-"
        text = (nic["name"], nic["status"], ",".join(kinds) or "-", speed, str(nic["mtu"] or "-"), nic["mac"] or "-")
        return tuple(map(printable, (*text, addresses, nic["description"] or "-")))

    rows = [("NAME", "STATUS", "FLAGS", "SPEED", "MTU", "MAC", "ADDRESSES", "DESCRIPTION"), *map(row, found)]
    click.echo(table(rows, columns(1)))
