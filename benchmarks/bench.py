"""What a bench is, and what several of them have in common."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import transfers
from benchmarks.transfers import Contender, Sample, Shape
from benchmarks.workshop import Workshop

ROUNDS = 5
# GB a round: enough for the start-up of a process, which its CPU seconds include, to weigh little; the slow get less.
# A whole run takes about a quarter of an hour where a core reads 6 GB/s, three minutes of it for the relays.
PLENTY, TLS_PLENTY, SOME, FEW = 16.0, 8.0, 2.0, 1.0
SAVED = 8.0  # there is a file of it, in memory

PYTHON = "{python} -m benchmarks.receivers "
RELAY_COMMAND = "{ringmain} relay "
_HAPROXY = """
global
    nbthread 1
defaults
    mode tcp
    maxconn 2000
    timeout connect 5s
    timeout client 60s
    timeout server 60s
{options}
listen relay
    bind 127.0.0.1:{{port}}{tls}
    server there 127.0.0.1:{{to}}
"""


@dataclass(frozen=True)
class Bench:
    """Contenders that do the same in turn. Ratios are against `reference`; `measure` does it once."""

    name: str
    title: str
    reference: str
    shape: Shape
    contenders: list[Contender]
    rounds: int = ROUNDS
    compared: bool = True  # its contenders are not compared by another bench already
    measure: Callable[[Workshop, Shape, Contender], Sample] = transfers.measure


def python(name: str, size: float, *, tls: bool = False) -> Contender:
    """Return a contender of `receivers`."""
    return Contender(name, f"{PYTHON}{name} {{port}}{' {cert}' if tls else ''}", size)


def haproxy(name: str, size: float, options: str = "", tls: str = "", connections: int = 1) -> Contender:
    """Return a haproxy with one thread."""
    config = _HAPROXY.format(options=options, tls=tls)
    return Contender(name, "haproxy -f {config}", size, config=config, server=True, connections=connections)
