"""What is measured of many connections at once: merging their lines, idle and quiet ones, relaying."""

from benchmarks import others
from benchmarks.bench import FEW, RELAY_COMMAND, SAVED, SOME, Bench, haproxy
from benchmarks.transfers import Contender, Shape

_MERGERS = "{python} -m benchmarks.mergers "
_LOAD = "{ringmain} load --max-connections {connections} tcp://127.0.0.1:{port}"
_SOCAT = "socat -u TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=1024 STDOUT"
_RSYSLOG = """
main_queue(queue.timeoutShutdown="60000")
module(load="imptcp")
template(name="line" type="string" string="%rawmsg%\\n")
ruleset(name="all") {{ action(type="omfile" file="/dev/stdout" template="line") }}
input(type="imptcp" address="127.0.0.1" port="{port}" ruleset="all" supportOctetCountedFraming="off")
"""


def _merging(connections: int) -> Bench:
    def contender(name: str, command: str, size: float) -> Contender:
        return Contender(name, f"{command} {{port}} {{connections}}", size, connections=connections)

    return Bench(
        f"many-{connections}",
        f"Merge the lines of {connections} connections, 400 bytes each",
        "C epoll merge",
        Shape(),
        [
            contender("C epoll merge", "{c}/merge", SAVED),
            contender("ringmain", f"{_MERGERS}ringmain", SAVED),
            contender("ringmain-each", f"{_MERGERS}ringmain-each", SOME),
            contender("uvloop-readline", f"{_MERGERS}uvloop-readline", FEW / 4),
        ],
    )


MANY = [_merging(connections) for connections in (16, 256, 1000)]

MANY_PIPE = Bench(
    "many-pipe",
    "Pass the lines of 256 connections on to a pipe: `ringmain load --max-connections 256` and others",
    "socat",
    Shape(piped=True),
    [
        Contender("socat", _SOCAT, FEW, server=True, connections=256, mixes=True),
        Contender("ringmain", _LOAD, SAVED / 2, server=True, connections=256),
        Contender("rsyslog", "rsyslogd -n -iNONE -f {config}", FEW / 8, config=_RSYSLOG, server=True, connections=256),
    ],
)

QUIET = Bench(
    "quiet",
    "Latency of a line that a quiet client sends beside 255 floods, into a consumer of 0.4 GB/s",
    "socat",
    Shape(piped=True),
    [
        Contender("socat", _SOCAT, 0, server=True, connections=256),
        Contender("ringmain", _LOAD, 0, server=True, connections=256),
    ],
    rounds=3,
    measure=others.quiet_latency,
)

IDLE_MANY = Bench(
    "idle-many",
    "Memory that 1,000 idle connections take",
    "ringmain",
    Shape(piped=True),
    [Contender("ringmain", _LOAD, 0, server=True, connections=1001)],
    rounds=3,
    measure=others.idle_memory,
)


def _relaying(connections: int, *besides: Contender) -> Bench:
    return Bench(
        f"relay-{connections}",
        f"Relay {connections} streams at once",
        "haproxy",
        Shape(relays=True),
        [
            haproxy("haproxy", SOME, connections=connections),
            haproxy("haproxy splice", SOME, "    option splice-auto", connections=connections),
            Contender(
                "ringmain",
                RELAY_COMMAND + "--max-connections {connections} tcp://127.0.0.1:{port} tcp://127.0.0.1:{to}",
                2 * SOME,
                server=True,
                connections=connections,
            ),
            *besides,
        ],
    )


_SOCAT_RELAY = "socat TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=1024 TCP:127.0.0.1:{to}"
RELAY_MANY = [
    _relaying(200, Contender("socat", _SOCAT_RELAY, SOME, server=True, connections=200)),
    _relaying(1000),
]

CROWDS = [*MANY, MANY_PIPE, QUIET, IDLE_MANY, *RELAY_MANY]
