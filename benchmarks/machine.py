"""What a result depends on besides ringmain: the machine, the kernel, and the versions of everyone."""

import importlib.metadata
import os
import platform
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("ringmain", "uvloop", "aiofastnet")
_PROGRAMS = {
    "socat": ["socat", "-V"],
    "ncat": ["ncat", "--version"],
    "nc": ["nc", "-h"],
    "iperf3": ["iperf3", "--version"],
    "cc": ["cc", "--version"],
}
_TUNABLES = ("net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "fs/pipe-max-size")


def load_average() -> list[float]:
    """Return the load average of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def describe_machine() -> dict[str, Any]:
    """Return what to state beside every figure."""
    cpus = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kernel": platform.release(),
        "processor": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "memory GiB": round(memory / 2**30, 1),
        "load average": load_average(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        **{name: _version(name) for name in _PACKAGES},
        **{name: _first_line(command) for name, command in _PROGRAMS.items()},
        **{name: (Path("/proc/sys") / name).read_text().strip() for name in _TUNABLES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str | None:
    """Return the line in which a program tells its version, if it does."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d\.\d|netcat", line)), None)
