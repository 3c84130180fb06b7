"""One stream through one contender, measured or compared.

What is verified when:
- In every measured transfer the bytes are counted at the far end. Where the far end is a process of its own (pipes,
  saving) it also reads the number that each 16th MiB of the stream bears, so a byte lost, doubled or misplaced shows.
- `compare` moves a smaller stream and compares the SHA-256 of all that came with that of what was sent. Contenders that
  receive for themselves write it to a pipe then. Every run compares each contender once, before it measures.
"""

import functools
import hashlib
import os
import socket
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import CONTENDER_CORES, OTHER_CORES, Processes, cpu_so_far, listening_socket
from benchmarks.workshop import GB, BenchError, Workshop

Sample = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """A program that moves a stream, and the stream it is given in a round.

    `command` is split at blanks, then words in braces are filled in: {c} the folder of the baselines, {python},
    {ringmain}, {port}, {to} the port that a relay connects to, {cert} a file with key and certificate, {config} a file
    with the text of `config`, {report} where to write JSON with `bytes` and `reads`. A `server` runs until it is told
    to end. `size` is in GB. `message` is the size of the source's writes, `rate` its limit in bytes a second (0: none).
    Each of many `connections` ({connections}) brings lines of 400 bytes in large writes; a contender that `mixes` them
    leaves no line whole, so that only the bytes can be counted.
    """

    name: str
    command: str
    size: float
    message: int = 256 << 10
    rate: float = 0
    config: str = ""
    server: bool = False
    connections: int = 1
    mixes: bool = False


@dataclass(frozen=True)
class Shape:
    """What stands at either side of a contender.

    `saves`: standard input to a connection, else a connection that it listens for. `relays`: that connection to another
    one. `piped`: the other side is a pipe; else a file when saving, and nothing when loading.
    """

    saves: bool = False
    relays: bool = False
    piped: bool = False
    tls: bool = False


def measure(workshop: Workshop, shape: Shape, contender: Contender) -> Sample:
    """Move one stream of the contender's size through it; return what that took."""
    size = int(contender.size * GB)
    with Processes(workshop) as processes:
        if shape.saves:
            started = 0.0
            _start_sink(processes, port := processes.free_port(), tls=shape.tls)
            _start_saver(processes, shape, contender, size, port)
        else:
            to = processes.free_port() if shape.relays else 0
            if shape.relays:
                _start_sink(processes, to, connections=contender.connections)
            started = _start_loader(processes, shape, contender, port := processes.free_port(), to)
            _start_source(processes, shape, contender, size, port)
        names = ["source", "contender", "sink"] if contender.server and shape.piped else processes.names
        for name in names:
            if name == "contender" and contender.server:
                processes.stop(name)
            processes.wait(name)
        return _sample(processes, shape, size, started)


def compare(workshop: Workshop, shape: Shape, contender: Contender, size: int) -> None:
    """Move `size` bytes and compare their SHA-256 at both ends; raise BenchError if they differ."""
    if contender.connections > 1:
        _compare_lines(workshop, shape, contender, size)
        return
    expected = _digest_of_pattern(workshop, size)
    with Processes(workshop) as processes:
        if shape.saves or shape.relays:
            with listening_socket() as listener:
                there = listener.getsockname()[1]
                if shape.saves:
                    _start_saver(processes, shape, contender, size, there, compared=True)
                else:
                    _start_loader(processes, shape, contender, port := processes.free_port(), there)
                    _start_source(processes, shape, contender, size, port)
                connection: socket.socket = listener.accept()[0]
            with connection:
                digest = (
                    _digest_of_tls(workshop, connection) if shape.tls and shape.saves else _digest(connection.fileno())
                )
        else:
            port = processes.free_port()
            _start_loader(processes, shape, contender, port, compared=True)
            _start_source(processes, shape, contender, size, port)
            digest = _digest(processes.stdout("contender"))
        if digest != expected:
            raise BenchError(f"{contender.name}: other bytes came than were sent; {processes.complaint('contender')}")


def _compare_lines(workshop: Workshop, shape: Shape, contender: Contender, size: int) -> None:
    with Processes(workshop) as processes:
        if shape.relays:
            _start_sink(processes, to := processes.free_port(), connections=contender.connections, compared=True)
            _start_loader(processes, shape, contender, port := processes.free_port(), to)
        else:
            _start_loader(processes, shape, contender, port := processes.free_port(), compared=True)
        _start_source(processes, shape, contender, size, port)
        far_end = "sink" if shape.relays else "contender"
        ended = functools.partial(processes.stop, "contender") if contender.server else None
        _check_lines(processes.stdout(far_end), contender, size, ended)


def command_line(processes: Processes, contender: Contender, port: int, to: int = 0) -> list[str]:
    """Fill in the words in braces, and write the configuration; see `Contender`."""
    words = processes.workshop.words | {"port": str(port), "report": str(processes.report_path("contender"))}
    words |= {"to": str(to), "connections": str(contender.connections), "config": str(processes.config_path)}
    processes.config_path.write_text(contender.config.format_map(words))
    return [word.format_map(words) for word in contender.command.split()]


def _start_sink(
    processes: Processes, port: int, *, tls: bool = False, connections: int = 1, compared: bool = False
) -> None:
    folder = processes.workshop.folder
    command = [str(folder / "sink"), str(port)]
    if tls:
        command = [str(folder / "tls"), "receive", str(port), processes.workshop.words["cert"]]
    elif connections > 1:
        command = [str(folder / "merge"), str(port), str(connections)]
    stdout = subprocess.PIPE if compared else subprocess.DEVNULL
    processes.start("sink", command, copying=compared, cores=OTHER_CORES, stdout=stdout)
    processes.wait_for_listener("sink", port)


def _start_saver(
    processes: Processes, shape: Shape, contender: Contender, size: int, port: int, *, compared: bool = False
) -> None:
    path = processes.workshop.file(size)
    command = command_line(processes, contender, port)
    with path.open("rb") as file:
        if shape.piped:
            feed = [str(processes.workshop.folder / "save"), "feed", "0"]
            pipe = processes.start("feed", feed, cores=OTHER_CORES, stdin=file, stdout=subprocess.PIPE).stdout
            processes.start("contender", command, measured=not compared, cores=CONTENDER_CORES, stdin=pipe)
            pipe.close()
        else:
            processes.start("contender", command, measured=not compared, cores=CONTENDER_CORES, stdin=file)


def _start_loader(
    processes: Processes, shape: Shape, contender: Contender, port: int, to: int = 0, *, compared: bool = False
) -> float:
    """Start a contender that loads, and what it writes to; return its CPU seconds until it listened."""
    piped = subprocess.PIPE if shape.piped or compared else subprocess.DEVNULL
    command = command_line(processes, contender, port, to)
    process = processes.start(
        "contender", command, measured=True, copying=compared, cores=CONTENDER_CORES, stdout=piped
    )
    if shape.piped and not compared:
        kind = "pipe" if contender.connections == 1 else "lines"
        processes.start(
            "sink", [str(processes.workshop.folder / "sink"), kind], cores=OTHER_CORES, stdin=process.stdout
        )
        process.stdout.close()
    processes.wait_for_listener("contender", port)
    return cpu_so_far(processes.pid("contender"))


def _start_source(processes: Processes, shape: Shape, contender: Contender, size: int, port: int) -> None:
    folder = processes.workshop.folder
    if shape.tls:
        command = [str(folder / "tls"), "send", str(port), str(size)]
    elif contender.connections > 1:
        command = [str(folder / "crowd"), str(port), str(size), str(contender.connections)]
    else:
        command = [str(folder / "send"), str(port), str(size), str(contender.message), str(contender.rate)]
    processes.start("source", command, cores=OTHER_CORES)


def _sample(processes: Processes, shape: Shape, size: int, started: float) -> Sample:
    own, source, sink = (processes.report(name) for name in ("contender", "source", "sink"))
    own = own.get("source", own)  # ringmain relay tells of both sides
    far_end: dict[str, Any] = sink or own
    if far_end.get("bytes", far_end.get("bytes_in")) != size or sink.get("bad"):
        complaint = processes.complaint("contender")
        raise BenchError(f"{size} bytes were sent, {far_end} came; {complaint}")
    begin = sink["start"] if shape.saves else source["start"]
    seconds = (sink or source)["end"] - begin
    cost = processes.cost("contender")
    gigabytes = size / GB
    sample = {
        "GB/s": gigabytes / seconds,
        "CPU s/GB": (cost["user"] + cost["system"]) / gigabytes,
        "net CPU s/GB": (cost["user"] + cost["system"] - started) / gigabytes,
        "user s/GB": cost["user"] / gigabytes,
        "system s/GB": cost["system"] / gigabytes,
        "peak MiB": cost["peak"] / (1 << 20),
        "waits/GB": cost["waits"] / gigabytes,
    }
    if own.get("reads"):
        sample |= {"reads/GB": own["reads"] / gigabytes, "read KiB": size / own["reads"] / 1024}
    if own.get("blocks"):
        sample["block KiB"] = size / own["blocks"] / 1024
    return sample


def _check_lines(fd: int, contender: Contender, size: int, ended: Callable[[], object] | None) -> None:
    """Read the lines of many connections, which must be all, and those of each in order; call `ended` at the last."""
    came = 0
    following = [0] * contender.connections
    with os.fdopen(os.dup(fd), "rb") as lines:
        for line in lines:
            came += len(line)
            if came == size and ended is not None:
                ended()
            if len(line) == 400 and not contender.mixes:  # but the last of all is shorter
                connection, number = int(line[:4], 16), int(line[5:15], 16)
                if line[15:] != b"." * 384 + b"\n" or number != following[connection]:
                    raise BenchError(f"{contender.name}: {line[:20]!r} came, not number {following[connection]}")
                following[connection] += 1
    if came != size:
        raise BenchError(f"{contender.name}: {size} bytes were sent, {came} came")


def _digest_of_pattern(workshop: Workshop, size: int) -> str:
    command = [str(workshop.folder / "send"), "0", str(size), str(1 << 20), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return _digest(process.stdout.fileno())


def _digest_of_tls(workshop: Workshop, connection: socket.socket) -> str:
    digest, context = hashlib.sha256(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(workshop.words["cert"])
    with context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False) as stream:
        while data := stream.recv(1 << 16):
            digest.update(data)
        stream.unwrap()
    return digest.hexdigest()


def _digest(fd: int) -> str:
    digest = hashlib.sha256()
    while data := os.read(fd, 1 << 20):
        digest.update(data)
    return digest.hexdigest()
