"""The table of equivalents: each pair of commands in it gets, or sends, the same bytes."""

import re
import shlex
import subprocess
from pathlib import Path

import documented
import peers
import pytest
from conftest import Certificates

PAGE = documented.ROOT / "docs" / "migrating.md"
if not PAGE.exists():
    pytest.skip("the documentation is not beside these tests", allow_module_level=True)
PROGRAMS = ("socat", "ncat", "nc")
DATA = b"".join(b"line %d\n" % number for number in range(20_000))


def pairs() -> list[tuple[str, str]]:
    """Return each command of another program, and ringmain's in the same row."""
    found = []
    for row in re.findall(r"^\| (.*?) \| `(ringmain (?:load|save|relay) [^`]*)`.*\|$", PAGE.read_text(), re.MULTILINE):
        found += [(theirs, row[1]) for theirs in re.findall(r"`([^`]+)`", row[0]) if theirs.startswith(PROGRAMS)]
    return [pair for pair in found if "--exec" not in pair[0]]


class Pair:
    """Two commands with free ports, certificates and files of this test in them."""

    def __init__(self, bench: peers.Bench, certificates: Certificates) -> None:
        self.bench, self.ca = bench, certificates.ca
        self.port, self.to = str(peers.free_port()), str(peers.free_port())
        self.socket = bench.folder / "s"
        self._replaced = {
            r"\b(8000|8443)\b": self.port,
            r"\b9000\b": self.to,
            r"\bHOST\b": "127.0.0.1",
            r"/run/s\b": str(self.socket),
            r"\bevents\b": str(bench.file(DATA, "events")),
            r"(?<=cafile.)ca\.pem": str(certificates.ca),
            r"server\.pem|cert\.pem|key\.pem": str(certificates.server),
            r"(?<=tcp://)(?=:)|(?<=tcps://)(?=:)": "127.0.0.1",
            "TLS-LISTEN": "TLS-LISTEN",
        }

    def start(self, command: str) -> peers.Program:
        """Start one of them, with DATA to send, and what it gets in a file."""
        for pattern, text in self._replaced.items():
            command = re.sub(pattern, text, command)
        command, _, source = command.partition(" < ")
        program, *arguments = shlex.split(command)
        if program == "nc":
            program = peers.need("nc.openbsd")
        elif program != "ringmain":
            program = peers.need(program)
        words = [*peers.RINGMAIN, *arguments] if program == "ringmain" else [program, *arguments]
        source = source or str(self.bench.folder / "events")
        with Path(source).open("rb") as given, (self.bench.folder / "got").open("wb") as got:
            return self.bench.start(words, stdin=given, stdout=got)

    def got(self, receiver: peers.Program) -> bytes:
        """Return what a receiver has written, once that is all of DATA or it has ended."""
        path = self.bench.folder / "got"
        peers.eventually(lambda: path.stat().st_size >= len(DATA) or receiver.process.poll() is not None, "all of it")
        return path.read_bytes()

    def wait_for_listener(self) -> None:
        peers.eventually(
            lambda: self.socket.exists() or "LISTEN" in peers.states(int(self.port)),
            lambda: f"a listener at {self.port}: {[it.stderr for it in self.bench.programs]}",
        )


def verb(command: str) -> str:
    return command.split()[1]


@pytest.mark.parametrize("own", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize(("theirs", "ours"), pairs())
def test_both_commands_of_a_row_do_the_same(
    theirs: str, ours: str, own: bool, bench: peers.Bench, certificates: Certificates
) -> None:
    pair = Pair(bench, certificates)
    command = ours if own else theirs
    tls = ["--cafile", str(certificates.ca)] if "tcps" in ours else []
    end = f"unix:{pair.socket}" if "unix:" in ours else f"{'tcps' if tls else 'tcp'}://127.0.0.1:{pair.port}"
    if verb(ours) == "save" or "--connect" in ours:
        listening = (
            ["load", "--listen-once"]
            if verb(ours) == "save"
            else ["save", "--listen-once", "--input", str(bench.folder / "events")]
        )
        certificate = ["--certfile", str(certificates.server)] if tls else []
        with (bench.folder / "received").open("wb") as received:
            peer = bench.ringmain(*listening, *certificate, end, stdout=received)
        pair.wait_for_listener()
        program = pair.start(command)
        assert peer.wait() == 0, peer.stderr
        assert program.wait() == 0, program.stderr
        got = bench.folder / ("received" if verb(ours) == "save" else "got")
        assert peers.sha256(got) == peers.sha256(DATA)
        return
    if verb(ours) == "relay":
        with (bench.folder / "got").open("wb") as got_file:
            peer = bench.ringmain("load", "--listen-once", f"tcp://127.0.0.1:{pair.to}", stdout=got_file)
        peers.wait_for_port(int(pair.to))
        with (bench.folder / "got").open("ab"):
            program = pair.start(command)
    else:
        peer = program = pair.start(command)
    pair.wait_for_listener()
    sender = bench.ringmain("save", *tls, "--retry", "20", end, stdin=subprocess.PIPE)
    assert sender.process.stdin is not None
    sender.process.stdin.write(DATA)
    sender.process.stdin.close()
    assert sender.wait() == 0, sender.stderr + program.stderr
    assert peers.sha256(pair.got(peer)) == peers.sha256(DATA), program.stderr


def test_the_table_has_pairs() -> None:
    assert len(pairs()) >= 12
    assert {verb(ours) for _, ours in pairs()} == {"load", "save", "relay"}
