"""What Prometheus would see: a scrape of a ringmain's --metrics, read by prometheus-client's own parsers."""

import http.client
import socket
from collections.abc import Callable
from typing import Any

import peers
from feeding import library

prometheus_client = library("prometheus_client")
from prometheus_client.openmetrics import parser as openmetrics  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Return the status, the type and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=peers.TIMEOUT)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


class Metrics:
    """The metrics of a program at a port."""

    def __init__(self) -> None:
        self.port = peers.free_port()
        self.options = ["--metrics", f"127.0.0.1:{self.port}"]

    def samples(self, accept: str = "") -> list[Any]:
        """Return all samples of a scrape; fail where the text is none that Prometheus takes."""
        status, kind, text = get(self.port, **({"Accept": accept} if accept else {}))
        assert status == 200
        if accept == OPENMETRICS:
            assert kind.startswith("application/openmetrics-text;")
            families = list(openmetrics.text_string_to_metric_families(text))
        else:
            assert kind.startswith("text/plain;")
            families = list(text_string_to_metric_families(text))
        return [sample for family in families for sample in family.samples]

    def all(self) -> dict[tuple[str, ...], float]:
        """Return all of a scrape, by name and by the values of labels."""
        return {(it.name.removeprefix("ringmain_"), *it.labels.values()): it.value for it in self.samples()}

    def shows(self, **figures: float) -> None:
        """Wait until these are shown: connections_total=1, or bytes_total__in=5 where a label says in."""
        wanted = {
            tuple(it.replace("_", " ") if number else it for number, it in enumerate(name.split("__"))): figure
            for name, figure in figures.items()
        }
        last: dict[tuple[str, ...], float] = {}

        def shown() -> bool:
            last.update(self.all())
            return wanted.items() <= last.items()

        peers.eventually(shown, lambda: f"{wanted} in {last}")

    def reach(
        self, condition: Callable[[dict[tuple[str, ...], float]], bool], what: str
    ) -> dict[tuple[str, ...], float]:
        """Wait until a condition of a scrape is true; return that scrape."""
        return peers.eventually(lambda: it if condition(it := self.all()) else None, what)


def ask(port: int, request: bytes) -> bytes:
    """Send a request as it is, and return what comes back until the other side ends, or resets."""
    with peers.connect(port) as sock:
        try:
            sock.sendall(request)
            peers.send_no_more(sock)
            return peers.read_all(sock)
        except (ConnectionResetError, BrokenPipeError):
            return b""


def answers_at(path: str) -> str:
    """Return the answer at a UNIX socket."""
    with peers.dial_unix(path) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        return peers.read_all(sock).decode()
