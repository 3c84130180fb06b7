"""`ringmain bench`: measurements that are refused, interrupted or broken, and the server, which goes on."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from typing import Any

import peers
import pytest
from conftest import Certificates
from measuring import measured, serving

from ringmain.bench.client import measure
from ringmain.bench.plan import Plan
from ringmain.bench.result import Measurement
from ringmain.bench.server import Server
from ringmain.bench.wire import CONTROL
from ringmain.endpoint import Endpoint
from ringmain.errors import ReceiveError, RingmainError
from ringmain.settings import Settings


def test_an_untrusted_server_is_refused(bench: peers.Bench, certificates: Certificates) -> None:
    endpoint = serving(bench, "--certfile", certificates.stranger, scheme="tcps")
    assert "--cafile" in measured(endpoint, "--cafile", certificates.ca, code=60)["error"]


def test_a_client_without_a_certificate_is_refused_and_the_next_one_served(
    bench: peers.Bench, certificates: Certificates
) -> None:
    endpoint = serving(bench, "--certfile", certificates.server, "--client-ca", certificates.ca, scheme="tcps")
    trust = ["--cafile", certificates.ca, "-n", "1M", "--processes"]
    assert "error" in measured(endpoint, *trust, code=56)
    assert measured(endpoint, *trust, "--certfile", certificates.client)["end"]["sum_received"]["bytes"] == 1 << 20


def test_one_measurement_at_a_time(bench: peers.Bench) -> None:
    endpoint = serving(bench)
    first = bench.start([*peers.RINGMAIN, "bench", endpoint, "-t", "30s"])
    port = int(endpoint.rpartition(":")[2])
    # Two connections of the first client, each with an end here.
    peers.eventually(lambda: peers.established(port) >= 4, "the first client's streams")
    assert measured(endpoint, "-n", "1M", code=56)["error"].endswith("busy with another measurement; try again later")
    first.signal(signal.SIGINT)
    assert first.wait() == 130
    peers.eventually(lambda: peers.established(port) == 0, "the end of the first")
    peers.eventually(lambda: "end" in _tried(endpoint), "a measurement")


def _tried(endpoint: str) -> dict[str, Any]:
    command = [*peers.RINGMAIN, "bench", endpoint, "-n", "1M", "--json"]
    result: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout
    )
    return result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda it: it.name)
@pytest.mark.parametrize("processes", [(), ("--processes",)], ids=["one process", "processes"])
def test_a_signal_to_all_as_from_a_terminal_ends_a_client_with_json(
    bench: peers.Bench, number: int, processes: tuple[str, ...]
) -> None:
    endpoint = serving(bench)
    port = int(endpoint.rpartition(":")[2])
    command = [*peers.RINGMAIN, "bench", endpoint, "-t", "30s", "--json", *processes]
    client = bench.start(command, stdout=subprocess.PIPE, process_group=0)
    peers.eventually(lambda: peers.established(port) >= 4, "the streams")
    os.killpg(client.process.pid, number)
    assert client.wait() == 128 + number
    assert client.process.stdout is not None
    assert "interrupted" in json.loads(client.process.stdout.read())["error"]
    assert client.stderr == ""
    peers.eventually(lambda: peers.established(port) == 0, "the end of its streams")


def test_a_server_that_dies_is_an_error(bench: peers.Bench) -> None:
    server, port = bench.serving_measurements()
    client = bench.start([*peers.RINGMAIN, "bench", f"127.0.0.1:{port}", "-t", "30s", "--json"], stdout=subprocess.PIPE)
    peers.eventually(lambda: peers.established(port) >= 4, "the streams")
    server.signal(signal.SIGKILL)
    assert client.wait() in (55, 56)
    assert client.process.stdout is not None
    assert json.loads(client.process.stdout.read()).keys() == {"error"}
    assert len(client.stderr.splitlines()) == 1


@pytest.mark.parametrize("reverse", [False, True], ids=["sending", "receiving"])
@pytest.mark.parametrize("processes", [False, True], ids=["one process", "processes"])
def test_a_server_that_dies_under_the_reference_is_an_error_of_ours(
    bench: peers.Bench, run: Any, processes: bool, reverse: bool
) -> None:
    server, port = bench.serving_measurements()
    plan = Plan(seconds=20, engine="reference", processes=processes, reverse=reverse)

    async def main() -> None:
        measuring = asyncio.ensure_future(measure(Endpoint("127.0.0.1", str(port)), Settings(), plan))
        await asyncio.to_thread(peers.eventually, lambda: peers.established(port) >= 4, "the streams")
        server.signal(signal.SIGKILL)
        with pytest.raises(RingmainError, match=f"bench with 127.0.0.1:{port}"):
            await measuring

    run(main())


def test_bad_peers_do_not_stop_a_server(bench: peers.Bench, certificates: Certificates) -> None:
    for scheme, tls in (("tcp", ()), ("tcps", ("--certfile", certificates.server))):
        server, port = bench.serving_measurements("--handshake-timeout", "5s", *tls, scheme=scheme)
        control = b"ringmain bench 2 " + CONTROL.encode() + b"\n"
        stranger = b"ringmain bench 2 " + b"f" * 32 + b"\n"
        for words in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"ringmain",
            b"",
            stranger,
            control + b"\x16\x03\x01\xff\xff",
            control,
        ):
            with peers.connect(port) as sock:
                sock.sendall(words)
                peers.send_no_more(sock)
                _until_closed(sock)
        for words in (control + b"[]\n", control + b'{"seconds": 1}\n', control + b"{" * 100 + b"\n"):
            if scheme == "tcp":
                with peers.connect(port) as sock:
                    sock.sendall(words)
                    assert b"error" in peers.read_all(sock)
        with peers.connect(port) as silent, peers.connect(port) as reset:
            peers.close_with_reset(reset)
            _until_closed(silent)
        trust = ("--cafile", certificates.ca, "--server-name", "localhost")
        result = measured(f"{scheme}://127.0.0.1:{port}", "-n", "1M", *(trust if tls else ()))
        assert result["end"]["sum_received"]["bytes"] == 1 << 20
        assert server.process.poll() is None
        assert "Traceback" not in server.stderr


def _until_closed(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass


def test_lost_bytes_are_no_result(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Measurement.__init__

    def lose_one(self: Measurement, *arguments: Any) -> None:
        whole(self, *arguments)
        self.receiver["totals"][0] -= 1

    async def main() -> None:
        async with Server(Endpoint.parse("tcp://127.0.0.1:0"), Settings(), listen_once=True) as server:
            serving = asyncio.ensure_future(server.serve())
            with pytest.raises(ReceiveError, match="1048576 bytes were sent and 1048575 received"):
                await measure(Endpoint("127.0.0.1", str(server.port)), Settings(), Plan(seconds=None, size=1 << 20))
            await serving

    monkeypatch.setattr(Measurement, "__init__", lose_one)
    run(main())
