"""What a NATS server wants to see is read again at SIGHUP, for the next connection; a bad file changes nothing."""

import signal
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import brokers
import operators
import peers
import pytest
import trustme
from scraping import Metrics


class Secured:
    """A server with TLS, and the file of the authority that vouches for it, which has another after `renew`."""

    def __init__(self, bench: peers.Bench) -> None:
        self.pem, self.ca = bench.folder / "nats.pem", bench.folder / "ca.pem"
        self._authority = trustme.CA()
        self._certify()
        self.trust()
        self.broker = brokers.Broker(bench, "--tls", "--tlscert", self.pem, "--tlskey", self.pem)

    def _certify(self) -> None:
        self.pem.unlink(missing_ok=True)
        self._authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(self.pem))

    def trust(self) -> None:
        """Write its authority to the file."""
        self.ca.write_bytes(self._authority.cert_pem.bytes())

    def renew(self) -> None:
        """Let another authority vouch for it, once it is started again; the file has that one from now on."""
        self._authority = trustme.CA()
        self._certify()
        self.trust()

    def run(self, work: Any) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self._authority.cert_pem.bytes().decode())
        return self.broker.run(work, tls=context)


@pytest.mark.parametrize("how", ["signal", "looking"])
def test_a_load_trusts_a_server_by_the_new_file(bench: peers.Bench, tmp_path: Path, how: str) -> None:
    server, out, metrics = Secured(bench), tmp_path / "out", Metrics()
    server.run(lambda js: js.add_stream(name="EVENTS", subjects=["events"]))
    looking = ["--reload-certificates", "50ms"] if how == "looking" else []
    options = ["--consumer", "c", "--cafile", server.ca, "-O", out, *looking, *metrics.options]
    program = bench.ringmain("load", *options, server.broker.url("EVENTS"), start_new_session=True)
    peers.wait_for_port(metrics.port)
    metrics.shows(connections_open=1)
    server.ca.write_text("garbage")
    if how == "signal":
        program.signal(signal.SIGHUP)
    program.says("the certificates stay as they were: CA file ")
    server.broker.kill()
    server.renew()
    server.broker.start()
    if how == "signal":
        program.signal(signal.SIGHUP)
    metrics.shows(reconnects_total=1, certificate_reloads_total__done=1, certificate_reloads_total__failed=1)
    server.run(lambda js: js.publish("events", b"12345\n"))
    peers.eventually(lambda: out.read_bytes() == b"12345\n", "the message")
    program.signal(signal.SIGTERM)
    assert program.wait() == 143


@pytest.mark.parametrize("verb", ["save", "relay"])
def test_who_stores_goes_on_after_a_bad_file_and_with_a_better_one(bench: peers.Bench, verb: str) -> None:
    server, metrics = Secured(bench), Metrics()
    server.run(lambda js: js.add_stream(name="EVENTS", subjects=["events"]))
    url = server.broker.url("events")
    ends = ["--cafile", server.ca, url] if verb == "save" else ["--destination-cafile", server.ca, "-", url]
    options = {"stdin": subprocess.PIPE, "start_new_session": True}
    program = bench.ringmain(verb, *metrics.options, *ends, **options)
    program.process.stdin.write(b"12345\n")
    program.process.stdin.flush()
    peers.wait_for_port(metrics.port)
    metrics.shows(bytes_total__out=6)
    server.broker.kill()
    server.ca.write_text("garbage")
    program.signal(signal.SIGHUP)
    metrics.shows(certificate_reloads_total__failed=1)
    server.broker.start()  # and is trusted by what was read before
    metrics.shows(reconnects_total=1)
    server.broker.kill()
    server.renew()
    program.signal(signal.SIGHUP)
    metrics.shows(certificate_reloads_total__done=1)
    server.broker.start()
    program.process.stdin.write(b"123\n")
    program.process.stdin.close()
    assert program.wait() == 0, program.stderr


@pytest.mark.parametrize("verb", ["load", "save"])
def test_credentials_that_were_read_in_time_outlive_the_old_ones(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    broker = brokers.Broker(bench, config=operators.configuration())
    metrics, path = Metrics(), tmp_path / "user.creds"
    lasting = str(operators.write_credentials(tmp_path / "lasting.creds"))
    broker.run(lambda js: js.add_stream(name="EVENTS", subjects=["events"]), user_credentials=lasting)
    expires = time.time() + 20
    operators.write_credentials(path, expires=expires)
    options = ["--credentials", path, *metrics.options]
    ends = ["--consumer", "c", broker.url("EVENTS")] if verb == "load" else [broker.url("events")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = bench.ringmain(verb, *options, *ends, start_new_session=True, **pipes)
    peers.wait_for_port(metrics.port)
    metrics.shows(connections_open=1)
    path.write_text("garbage")
    program.signal(signal.SIGHUP)
    program.says(f"the certificates stay as they were: --credentials {path}: it has no NATS USER JWT; give")
    operators.write_credentials(path)
    program.signal(signal.SIGHUP)
    metrics.shows(certificate_reloads_total__done=1, certificate_reloads_total__failed=1, reconnects_total=1)
    peers.eventually(lambda: time.time() > expires + 1, "the end of the old ones")
    if verb == "load":
        broker.run(lambda js: js.publish("events", b"12345\n"), user_credentials=lasting)
        assert program.process.stdout.readline() == b"12345\n"
        program.signal(signal.SIGTERM)
        assert program.wait() == 143
    else:
        program.process.stdin.write(b"12345\n")
        program.process.stdin.close()
        assert program.wait() == 0, program.stderr
    assert "expired" not in program.stderr
