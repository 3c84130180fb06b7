"""Where Prometheus asks: HTTP at an address of its own, `--metrics`. What it is told: `metrics`.

Goal: nothing that anybody does there keeps the bytes of a run waiting, or takes more than a fixed amount of memory.
So it is served by the run's own loop and not by threads: MOST connections at once, of which the oldest gives way to a
new one; one request each, of LONGEST bytes, done within PATIENCE; and an answer every PAUSE, however many ask.
http.server reads a request, wsgiref and prometheus-client answer it.
"""

import asyncio
import contextlib
import functools
import io
import logging
import re
import socket
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from ringmain import __version__
from ringmain.cli.metrics import KINDS, Kind, Told
from ringmain.endpoint import Endpoint, without_secrets
from ringmain.errors import UsageError, reason
from ringmain.net.arrivals import MOST_AT_ONCE, Arrivals
from ringmain.net.listeners import addresses_of, open_listeners
from ringmain.settings import Settings
from ringmain.waiting import let_go

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise UsageError("--metrics", "it needs prometheus-client", "pip install 'ringmain[metrics]'") from error

log = logging.getLogger("ringmain")

MOST = 16
LONGEST = 16 << 10
PATIENCE = 5.0
PAUSE = 0.05
_PATH = "/metrics"
_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")
_TOO_LONG = b"HTTP/1.0 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer:
    """Answer whoever asks for the metrics of a run at an address: HOST:PORT, a UNIX socket, or what is handed over."""

    def __init__(self, address: str) -> None:
        """Raise UsageError where it is none."""
        what, remedy = f"--metrics {without_secrets(address)}", "write HOST:PORT, or unix:/path for a UNIX socket"
        try:
            self.endpoint = Endpoint.parse(address)
        except UsageError as error:
            raise UsageError(what, error.why, remedy) from error
        if self.endpoint.tls:
            raise UsageError(what, "metrics are served without TLS", remedy)
        self._arrivals: Arrivals | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}  # who came first first
        self._turn = asyncio.Lock()
        self._due = 0.0  # when the next answer may be given

    async def open(self, look: Callable[[], Told]) -> list[str]:
        """Listen, and answer with what `look` returns; return the addresses. Raises ResolveError or BindError."""
        registry = CollectorRegistry(auto_describe=True)  # or it knows no names to choose from
        registry.register(_RunCollector(look))
        ProcessCollector(registry=registry)
        self._app = _only_at_the_path(make_wsgi_app(registry))
        self._arrivals = Arrivals(await open_listeners(self.endpoint, Settings()), None)
        self._arrivals.watch(self._welcome)
        return addresses_of(self._arrivals.sockets)

    async def close(self) -> None:
        """Stop listening, and break off what is under way."""
        if self._arrivals is not None:
            self._arrivals.close()
        for task in self._tasks:
            task.cancel()
        await let_go(list(self._tasks))

    def _welcome(self) -> None:
        assert self._arrivals is not None
        self._arrivals.accept(MOST_AT_ONCE)
        while self._arrivals.waiting:
            if len(self._tasks) >= MOST:
                oldest = next(iter(self._tasks))
                del self._tasks[oldest]
                oldest.cancel()
            sock, _ = self._arrivals.waiting.popleft()
            task = asyncio.get_running_loop().create_task(self._serve(sock))
            self._tasks[task] = None
            task.add_done_callback(functools.partial(self._served, sock))

    def _served(self, sock: socket.socket, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        sock.close()  # here, since it may have been cancelled before its first step

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # a time-out too
            async with asyncio.timeout(PATIENCE):
                head = await _read_head(sock)
                async with self._turn:
                    await asyncio.sleep(self._due - loop.time())
                    self._due = loop.time() + PAUSE
                    answer = _answer(head, self._app) if head is not None else _TOO_LONG
                await loop.sock_sendall(sock, answer)
                sock.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(sock, LONGEST):  # a reset, for what is unread, would take the answer with it
                    pass


class _RunCollector(Collector):  # type: ignore[misc]  # prometheus-client counts as untyped
    """The metrics of a run. What counts never falls, though in its last moments a run forgets some of it."""

    def __init__(self, look: Callable[[], Told]) -> None:
        self._look = look
        self._highest: dict[tuple[str, str], float] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        yield InfoMetricFamily("ringmain_build", "Which ringmain this is.", value={"version": __version__})
        told = self._look()
        for name, kind in KINDS.items():
            if name in told:
                yield self._metric(name, kind, told[name])

    def _metric(self, name: str, kind: Kind, value: float | Mapping[str, float]) -> Metric:
        family = CounterMetricFamily if kind.counts else GaugeMetricFamily
        metric = family(f"ringmain_{name}", kind.help, labels=[kind.label] if kind.label else [])
        for label, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            if kind.counts:
                number = self._highest[name, label] = max(number, self._highest.get((name, label), 0))
            metric.add_metric([str(label)] if kind.label else [], number)
        return metric


def _only_at_the_path(app: _App) -> _App:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _PATH:
            try:
                return app(environ, start_response)
            except Exception as error:  # as of an Accept header that prometheus-client does not understand
                log.warning("--metrics: a request had no answer: %s", reason(error))
                start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
                return [b"there is no answer to this\n"]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [f"the metrics are at {_PATH}\n".encode()]

    return answer


async def _read_head(sock: socket.socket) -> bytes | None:
    """Return a request up to the empty line behind its head, or to its end; None where that is too long."""
    read, loop = b"", asyncio.get_running_loop()
    while (end := _EMPTY_LINE.search(read)) is None and len(read) <= LONGEST:
        if not (chunk := await loop.sock_recv(sock, LONGEST)):
            return read
        read += chunk
    return read[: end.end()] if end is not None else None


class _Request(WSGIRequestHandler):
    """A request that is there already, in memory."""

    default_request_version = "HTTP/1.0"  # so that each answer has a head

    def __init__(self, head: bytes, app: _App) -> None:
        self.written = io.BytesIO()
        self.rfile, self.wfile = io.BytesIO(head), self.written
        self.client_address = ("", 0)
        self.server = types.SimpleNamespace(get_app=lambda: app, base_environ={})  # type: ignore[assignment]

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _answer(head: bytes, app: _App) -> bytes:
    request = _Request(head, app)
    request.handle()
    return request.written.getvalue()
