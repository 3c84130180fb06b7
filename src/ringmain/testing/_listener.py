"""The process behind a peer: it listens, serves one client after another, and tells what became of each.

python -m ringmain.testing._listener JSON

JSON are the arguments of `Task`. Standard input brings the payload of a saver, and its end is the end of the process.
Standard output gets a line of JSON with the port, and one for each connection: the fields of `PeerConnection`.
"""

import asyncio
import hashlib
import json
import logging
import sys
from typing import Any, NamedTuple

import uvloop

from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError
from ringmain.flow.outflow import Outflow
from ringmain.net.failures import failure_of
from ringmain.net.gate import listen
from ringmain.net.tls import server_context
from ringmain.outcome import Outcome, Verdict
from ringmain.settings import Settings
from ringmain.sources import load
from ringmain.terminal import write_whole_texts

# Short payloads are sent many at a time, and long ones piece by piece: what stays in the cache is copied faster.
_PIECE = 256 << 10


class Task(NamedTuple):
    """What to do: `load`, or send `times` a payload of `payload_size` bytes; with the key and certificate in a file."""

    verb: str
    host: str
    certfile: str | None
    payload_size: int
    times: int
    digest: bool


def _tell(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def _tell_of(outcome: Outcome, sha256: Any = None) -> None:
    _tell(
        {
            "peer": outcome.peer,
            "tls": outcome.tls,
            "size": outcome.size,
            "verdict": outcome.verdict,
            "error": None if outcome.error is None else str(outcome.error),
            "sha256": None if sha256 is None else sha256.hexdigest(),
        }
    )


class _FailedClients(logging.Handler):
    """Tells of the clients that the gate only warns of: those that never got ready for data."""

    def emit(self, record: logging.LogRecord) -> None:
        failed = {"peer": None, "tls": None, "size": 0, "verdict": "failed", "sha256": None}
        _tell({**failed, "error": record.getMessage()})


async def _load(task: Task) -> None:
    tls = task.certfile is not None
    async with load(_endpoint(task), tls=tls, certfile=task.certfile, gate="queue") as loader:
        _tell({"port": loader.port})
        async for stream in loader.connections():
            error = None
            sha256 = hashlib.sha256() if task.digest else None
            try:
                async for block in stream:
                    if sha256 is not None:
                        sha256.update(block)
            except RingmainError as failure:
                error = failure
            _tell_of(stream.inflow.outcome(error), sha256)


async def _save(task: Task, payload: bytes) -> None:
    settings = Settings(certfile=task.certfile, gate="queue")
    context = None if task.certfile is None else server_context(settings)
    gate = await listen(Endpoint.parse(_endpoint(task)), settings)
    try:
        _tell({"port": gate.port})
        while True:
            link = await gate.next_connection(context)
            outflow = Outflow(link)
            try:
                await _send(outflow, payload, task.times)
                await outflow.finish()
                outcome = outflow.outcome(Verdict.ENDED)
            except OSError as failure:
                outcome = outflow.outcome(Verdict.RESET, failure_of(failure, f"save to {link.peer}"))
            finally:
                outflow.close()
                gate.done(link)
            _tell_of(outcome)
    finally:
        gate.close()


async def _send(outflow: Outflow, payload: bytes, times: int) -> None:
    """Send the payload that often."""
    together = max(1, min(times, _PIECE // max(1, len(payload))))
    batch = memoryview(payload * together)
    while times > 0:
        size = min(times, together) * len(payload)
        for start in range(0, size, _PIECE):
            await outflow.send(batch[start : min(size, start + _PIECE)])
        times -= together


def _endpoint(task: Task) -> str:
    return str(Endpoint(task.host, "0"))


async def _until_input_ends(work: asyncio.Future[None]) -> None:
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), work.cancel)
    await asyncio.wait([work])
    if not work.cancelled():
        work.result()


async def _main(task: Task, payload: bytes) -> None:
    work = _load(task) if task.verb == "load" else _save(task, payload)
    await _until_input_ends(asyncio.ensure_future(work))


if __name__ == "__main__":
    write_whole_texts()
    logging.getLogger("ringmain").addHandler(_FailedClients())
    task = Task(**json.loads(sys.argv[1]))
    payload = sys.stdin.buffer.read(task.payload_size)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(task, payload))
