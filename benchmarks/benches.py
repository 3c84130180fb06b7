"""What is measured of single streams, and the list of all benches; `crowds` are those of many connections."""

from dataclasses import replace

from benchmarks import others
from benchmarks.bench import FEW, PLENTY, PYTHON, RELAY_COMMAND, SAVED, SOME, TLS_PLENTY, Bench, haproxy, python
from benchmarks.crowds import CROWDS
from benchmarks.logs import LOGS
from benchmarks.transfers import Contender, Shape
from benchmarks.workshop import GB

SIZES = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20]
GROWTH = [1, 3, 10, 32]

_LOAD = "{ringmain} load --listen-once --stats-file {report} "
_SAVE = "{ringmain} save --stats-file {report} tcp://127.0.0.1:{port}"

RINGMAIN = python("ringmain", PLENTY)
C_READ = Contender("C read", "{c}/receive read {port}", PLENTY)

RECEIVE = Bench(
    "receive",
    "Receive a stream: ringmain's `async for block in load(...)` and others",
    "C read",
    Shape(),
    [
        C_READ,
        Contender("C poll + drain", "{c}/receive drain {port}", PLENTY),
        RINGMAIN,
        python("ringmain-lines", PLENTY / 2),
        python("asyncio-streams", FEW),
        python("asyncio-buffered", SOME),
        python("uvloop-streams", SOME),
        python("uvloop-protocol", SOME),
        python("uvloop-buffered", SOME),
    ],
)

PIPE = Bench(
    "pipe",
    "Pass a stream on to a pipe: `ringmain load` and others",
    "C splice + mark",
    Shape(piped=True),
    [
        Contender("C splice + mark", "{c}/pipe mark {port}", PLENTY),
        Contender("C splice", "{c}/pipe splice {port}", SOME),
        Contender("C read/write", "{c}/pipe readwrite {port}", FEW / 2),
        Contender("ringmain", _LOAD + "tcp://127.0.0.1:{port}", PLENTY),
        Contender("ringmain --path block", _LOAD + "--path block tcp://127.0.0.1:{port}", FEW / 2),
        Contender("socat", "socat -u TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr STDOUT", FEW / 2),
        Contender("socat -b", "socat -b 262144 -u TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr STDOUT", FEW / 2),
        Contender("nc", "nc -d -l 127.0.0.1 {port}", FEW / 2),
        Contender("ncat", "ncat -l --recv-only 127.0.0.1 {port}", FEW / 2),
    ],
)

TLS = Bench(
    "tls",
    "Receive a TLS 1.3 stream: ringmain's `async for block in load(...)` and others",
    "C OpenSSL",
    Shape(tls=True),
    [
        Contender("C OpenSSL", "{c}/tls receive {port} {cert}", TLS_PLENTY),
        python("ringmain", TLS_PLENTY, tls=True),
        python("aiofastnet", TLS_PLENTY, tls=True),
        python("uvloop-buffered", FEW, tls=True),
        python("asyncio-buffered", FEW, tls=True),
        python("sslsocket", FEW, tls=True),
    ],
)

TLS_PIPE = Bench(
    "tls-pipe",
    "Pass a TLS 1.3 stream on to a pipe: `ringmain load --tls` and others",
    "socat",
    Shape(piped=True, tls=True),
    [
        Contender("socat", "socat -u OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,cert={cert},verify=0 STDOUT", SOME),
        Contender("ncat", "ncat -l --recv-only --ssl --ssl-cert {cert} --ssl-key {cert} 127.0.0.1 {port}", SOME),
        Contender("ringmain", _LOAD + "--tls --certfile {cert} tcp://127.0.0.1:{port}", SOME),
    ],
)

_SAVERS = [
    Contender("ringmain", _SAVE, SAVED),
    Contender("socat", "socat -u STDIN TCP:127.0.0.1:{port}", FEW),
    Contender("nc", "nc -N 127.0.0.1 {port}", FEW),
    Contender("ncat", "ncat --send-only 127.0.0.1 {port}", FEW),
]

SAVE_FILE = Bench(
    "save-file",
    "Send a file: `ringmain save < FILE` and others",
    "C sendfile",
    Shape(saves=True),
    [Contender("C sendfile", "{c}/save sendfile {port}", SAVED), *_SAVERS],
)
SAVE_PIPE = Bench(
    "save-pipe",
    "Send what comes by a pipe: `... | ringmain save` and others",
    "C splice",
    Shape(saves=True, piped=True),
    [Contender("C splice", "{c}/save splice {port}", SAVED), *_SAVERS],
)

SAVE_TLS = Bench(
    "save-tls",
    "Send a file over TLS 1.3: `ringmain save < FILE` and others",
    "C OpenSSL",
    Shape(saves=True, tls=True),
    [
        Contender("C OpenSSL", "{c}/tls save {port} -", TLS_PLENTY),
        Contender("ringmain", _SAVE.replace("tcp://", "--insecure tcps://"), TLS_PLENTY),
        Contender("aiofastnet", "{python} -m benchmarks.senders aiofastnet {port}", TLS_PLENTY),
    ],
)


SLOW = Bench(
    "slow",
    "Pass a slow stream on to a pipe: 100 MB/s in writes of 4 KiB",
    "socat",
    Shape(piped=True),
    [
        replace(contender, size=0.5, message=4096, rate=100e6)
        for contender in PIPE.contenders
        if contender.name in ("socat", "ringmain")
    ],
    compared=False,
)

GROW = Bench(
    "growth",
    "Receive 1 GB and 32 GB: does it get slower, or bigger?",
    "ringmain 1 GB",
    Shape(),
    [replace(RINGMAIN, name=f"ringmain {size} GB", size=float(size)) for size in (1, 32)],
    compared=False,
)

GROW_PLOT = Bench(
    "bytes",
    "Receive 1 to 32 GB",
    "C read 1 GB",
    Shape(),
    [
        replace(contender, name=f"{contender.name} {size} GB", size=float(size))
        for size in GROWTH
        for contender in (C_READ, RINGMAIN)
    ],
    rounds=1,
    compared=False,
)


def _message_size(message: int) -> str:
    return f"{message >> 20} MiB" if message >> 20 else f"{message >> 10} KiB" if message >> 10 else f"{message} B"


MESSAGES = Bench(
    "messages",
    "Receive a stream written in messages of 64 B to 4 MiB",
    "C read 64 KiB",
    Shape(),
    [
        # Small writes are slow to send: fewer bytes take as long.
        replace(contender, name=f"{contender.name} {_message_size(message)}", size=size, message=message)
        for message in SIZES
        for size in [min(2.0, message * 4e5 / GB)]
        for contender in (C_READ, RINGMAIN, python("uvloop-buffered", 1))
    ],
    rounds=3,
    compared=False,
)

_SOCAT_LOAD = "socat -u TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr STDOUT"

IDLE = Bench(
    "idle",
    "Latency of one byte on an idle stream, from the socket to the pipe",
    "socat",
    Shape(piped=True),
    [Contender("socat", _SOCAT_LOAD, 0), Contender("ringmain", _LOAD + "tcp://127.0.0.1:{port}", 0)],
    measure=others.idle_latency,
)

PING_PONG = Bench(
    "ping-pong",
    "Latency of 1 KiB from a pipe through one that saves and one that loads, to a pipe",
    "socat",
    Shape(piped=True),
    [
        Contender("socat", f"{_SOCAT_LOAD} && socat -u STDIN TCP:127.0.0.1:{{port}}", 0),
        Contender("ringmain", f"{_LOAD} tcp://127.0.0.1:{{port}} && {{ringmain}} save tcp://127.0.0.1:{{port}}", 0),
    ],
    measure=others.ping_pong,
)

_RELAY = RELAY_COMMAND + "--listen-once --stats-file {report} "
_SOCAT_RELAY = Contender("socat", "socat TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr TCP:127.0.0.1:{to}", FEW)
_STUNNEL = """
foreground = yes
debug = err
pid =
[relay]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{to}
cert = {cert}
sslVersionMin = TLSv1.3
"""


RELAY = Bench(
    "relay",
    "Relay a stream to another connection: `ringmain relay` and others",
    "C splice + mark",
    Shape(relays=True),
    [
        Contender("C splice + mark", "{c}/relay mark {port} {to}", PLENTY / 2),
        Contender("C splice", "{c}/relay splice {port} {to}", PLENTY / 2),
        Contender("ringmain", _RELAY + "tcp://127.0.0.1:{port} tcp://127.0.0.1:{to}", PLENTY / 2),
        Contender("ringmain --path block", _RELAY + "--path block tcp://127.0.0.1:{port} tcp://127.0.0.1:{to}", SOME),
        _SOCAT_RELAY,
        haproxy("haproxy", SOME),
        haproxy("haproxy splice", SOME, "    option splice-auto"),
    ],
)

RELAY_BOTH = Bench(
    "relay-both",
    "Relay two streams, one each way; GB/s is of one of them, CPU s/GB of both",
    "C splice",
    Shape(relays=True),
    [
        replace(contender, size=contender.size / 2)
        for contender in RELAY.contenders
        if contender.name in ("C splice", "ringmain", "socat")
    ],
    measure=others.both_ways,
)

RELAY_TLS = Bench(
    "relay-tls",
    "End TLS 1.3: `ringmain relay tcps://... tcp://...` and others",
    "stunnel",
    Shape(relays=True, tls=True),
    [
        Contender("stunnel", "stunnel {config}", SOME, config=_STUNNEL, server=True),
        haproxy("haproxy", SOME, tls=" ssl crt {cert} ssl-min-ver TLSv1.3"),
        Contender(
            "socat",
            "socat OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,cert={cert},verify=0 TCP:127.0.0.1:{to}",
            SOME,
        ),
        Contender(
            "ringmain",
            _RELAY + "--source-certfile {cert} tcps://127.0.0.1:{port} tcp://127.0.0.1:{to}",
            SOME,
        ),
    ],
)

RELAY_LATENCY = Bench(
    "relay-latency",
    "Latency of 1 KiB through a relay to a server and back",
    "socat",
    Shape(relays=True),
    [
        replace(contender, size=0)
        for contender in RELAY.contenders
        if contender.name in ("socat", "ringmain", "ringmain --path block", "haproxy")
    ],
    measure=others.relay_latency,
)

START = Bench(
    "start",
    "From the start of the process to its listening socket, or to its end",
    "import asyncio",
    Shape(),
    [
        Contender("import asyncio", "{python} -c __import__('asyncio')", 0),
        Contender("ringmain", "{ringmain} load tcp://127.0.0.1:{port}", 0),
        Contender("import click", "{python} -c __import__('click')", 0),
        Contender("ringmain --version", "{ringmain} --version", 0),
        Contender("python", "{python} -c pass", 0),
        Contender("import ringmain", "{python} -c __import__('ringmain')", 0),
    ],
    rounds=15,
    measure=others.start_up,
)

STALLED = Bench(
    "stalled",
    "Peak memory while nobody reads what is received",
    "ringmain",
    Shape(piped=True),
    [
        Contender("ringmain", _LOAD + "tcp://127.0.0.1:{port}", 0),
        Contender("ringmain --path block", _LOAD + "--path block tcp://127.0.0.1:{port}", 0),
        Contender("ringmain-stalled", PYTHON + "ringmain-stalled {port}", 0),
    ],
    rounds=1,
    measure=others.stalled_memory,
)

IPERF = Bench(
    "iperf3",
    "iperf3 over the loopback, for orientation: its server drops what it reads",
    "iperf3",
    Shape(),
    [Contender("iperf3", "iperf3 -s -1 -p {port}", 0)],
    rounds=1,
    measure=others.iperf,
)

_ALL = [RECEIVE, PIPE, TLS, TLS_PIPE, SAVE_FILE, SAVE_PIPE, SAVE_TLS, SLOW, IDLE, PING_PONG, START, STALLED, GROW]
_ALL += [*CROWDS, RELAY, RELAY_BOTH, RELAY_TLS, RELAY_LATENCY, *LOGS]
BENCHES = {bench.name: bench for bench in [*_ALL, MESSAGES, GROW_PLOT, IPERF]}
