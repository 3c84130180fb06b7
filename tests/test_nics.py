"""The interfaces, against what the kernel itself says."""

import json
import os
import socket
import subprocess
from pathlib import Path

import peers

import ringmain


def test_the_loopback_interface_is_complete() -> None:
    nics = {nic["name"]: nic for nic in ringmain.nics()}
    assert set(nics) == {name for _, name in socket.if_nameindex()}
    lo = nics["lo"]
    assert (lo["loopback"], lo["up"], lo["wireless"], lo["status"]) == (True, True, False, "not applicable")
    assert "127.0.0.1" in lo["ipv4"]
    assert lo["mac"] is None
    for name, nic in nics.items():
        folder = Path("/sys/class/net") / name
        assert nic["mtu"] == int((folder / "mtu").read_text())
        assert nic["up"] == bool(int((folder / "flags").read_text(), 16) & 1)
        if nic["mac"]:
            assert nic["mac"] == (folder / "address").read_text().strip()
        assert nic["status"] in ("connected", "disconnected", "unknown", "not applicable")


def test_the_command_prints_a_table_or_one_object_a_line() -> None:
    table = subprocess.run([*peers.RINGMAIN, "nics"], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = subprocess.run([*peers.RINGMAIN, "nics", "--json"], capture_output=True, text=True, check=True).stdout
    objects = [json.loads(line) for line in rows.splitlines()]
    assert [line.split()[0] for line in table] == ["NAME", *[row["name"] for row in objects]]
    assert objects == ringmain.nics()


def test_the_table_is_as_wide_as_there_is_room() -> None:
    env = {**os.environ, "COLUMNS": "40"}
    narrow = subprocess.run([*peers.RINGMAIN, "nics"], capture_output=True, text=True, check=True, env=env).stdout
    names = [nic["name"] for nic in ringmain.nics()]
    assert [line.split()[0] for line in narrow.split("\n\n")[0].splitlines()] == ["NAME", *names]
    assert max(len(line) for line in narrow.splitlines() if "." not in line and "::" not in line) <= 40
