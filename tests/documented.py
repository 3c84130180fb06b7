"""The code blocks of the documentation, and a reader who types them: page by page, in order, in one folder a page.

A block of `console`, `bash` or `python` is run as it stands, but for ports, which become free ones. A comment before
a block says what else is to be known of it:

<!-- test: background 8000 -->   it goes on meanwhile: the next block is run once somebody listens at that port
<!-- test: after 8000 -->        it is run once what was started with that port has ended
<!-- test: file NAME -->         it is what stands in that file, of any language
<!-- test: output -->            it is what the block before it prints, of any language
<!-- test: output 8000 -->       it is what that prints which was started with that port, and has ended
<!-- test: skip WHY -->          nobody can run it here

Of what a command prints, digits may be others, and `...` may be anything: within a line, or as a line any number.
A command ends with 0, or the next one is `echo $?`.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import peers

ROOT = Path(__file__).parent.parent
LANGUAGES = ("console", "bash", "python")
_FENCE = re.compile(
    r"(?:^<!-- test: (\w+)(?: ([^\n]*?))? -->\n+)?^(`{3,})([\w{}-]*)[^\n]*\n(.*?)^\3$", re.MULTILINE | re.DOTALL
)
# The hosts after which a number is a port of this machine.
_PORT = re.compile(
    r"(?<=127\.0\.0\.1[:/ ])\d{4,5}\b|(?<=//:)\d{4,5}\b|(?<=localhost:)\d{4,5}\b|(?<=-[pP] )\d{4}\b|(?<=LISTEN:)\d{4}\b"
)
# What changes more than a folder: a reader may, a test must not.
_FAR_REACHING = re.compile(r"^\$ .*\b(pip3? install|apt|apt-get|sudo|systemctl|make|podman|docker|git)\b", re.MULTILINE)
_MARK = "\x01"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and what is said of it: an order and its argument."""

    language: str
    text: str
    order: str
    argument: str
    line: int

    @property
    def is_run(self) -> bool:
        """Tell whether a reader would run it."""
        return self.language in LANGUAGES and self.order not in ("skip", "file", "output")


def pages() -> list[Path]:
    """Return all pages that have blocks, the README among them."""
    paths = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
    paths += [path for folder in ("docs", "examples") for path in sorted((ROOT / folder).rglob("*.md"))]
    return [path for path in paths if path.exists()]


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    text = path.read_text()
    return [
        Block(match[4], match[5], match[1] or "", match[2] or "", text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def block_with(path: Path, words: str) -> str:
    """Return the text of the only block of a page that has these words."""
    [text] = [it.text for it in blocks(path) if words in it.text]
    return text


def check_harmless(blocks: list[Block]) -> None:
    """Fail where a block that would be run changes more than the folder that it is run in."""
    for block in blocks:
        found = _FAR_REACHING.search(block.text) if block.is_run else None
        assert found is None, f"the block at line {block.line}: {found and found[0]!r} needs <!-- test: skip WHY -->"


class Reader:
    """Who types what stands on a page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports: dict[str, str] = {}
        self._background: dict[str, tuple[subprocess.Popen[bytes], Path, Block]] = {}
        (folder / ".bin").mkdir()
        for name, command in (("ringmain", "-P -m ringmain"), ("python", ""), ("python3", ""), ("pytest", "-m pytest")):
            shim = folder / ".bin" / name
            shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
            shim.chmod(0o755)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RINGMAIN_", "PYTEST_"))},
            "PATH": f"{folder / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "120",
        }

    def read(self, blocks: list[Block]) -> None:
        """Do all that a page says; fail at the first thing that is not as it says."""
        check_harmless(blocks)
        printed = ""
        for block in blocks:
            try:
                if block.order == "file":
                    path = self.folder / block.argument
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(self._with_free_ports(block.text))
                elif block.order == "output":
                    check(block.text, self._await(block.argument) if block.argument else printed)
                elif block.is_run:
                    printed = self._run(block)
            except AssertionError as error:
                raise AssertionError(f"the block at line {block.line}: {error}{self._told()}") from None
        for port in list(self._background):
            self._end(port)

    def close(self) -> None:
        """End whatever still runs."""
        for process, _, _ in self._background.values():
            _kill(process)

    def _run(self, block: Block) -> str:
        if block.order == "background":
            if block.argument in self._background:
                self._end(block.argument)
            self._start(block)
            return ""
        if block.order == "after":
            self._await(block.argument)
        process, file = self._popen(block)
        try:
            process.wait(3 * peers.TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end; so far: {file.read_text(errors='replace')}") from None
        finally:
            _kill(process)
        printed = file.read_text(errors="replace")
        self._compare(block, printed, process.returncode)
        return printed

    def _start(self, block: Block) -> None:
        process, file = self._popen(block)
        self._background[block.argument] = process, file, block
        port = int(self._port(block.argument))

        def listens() -> bool:
            assert process.poll() is None, f"it has ended: {file.read_text()}"
            return bool({"LISTEN"} & peers.states(port))

        if block.argument.isdecimal():
            peers.eventually(listens, lambda: f"a listener at {port}; it says {file.read_text()!r}")

    def _await(self, port: str) -> str:
        """Wait for the end of what runs in the background; see what it has printed, and return that."""
        process, file, block = self._background.pop(port)
        try:
            process.wait(peers.TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{block.text} does not end: {file.read_text()}") from None
        finally:
            _kill(process)
        printed = file.read_text(errors="replace")
        self._compare(block, printed, process.returncode)
        return printed

    def _end(self, port: str) -> None:
        """Let it end as by Ctrl-C, unless it has ended itself, and see what it has printed."""
        process, file, block = self._background.pop(port)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(peers.TIMEOUT)
        finally:
            _kill(process)
        if port.isdecimal():  # what listened is killed, and may be there for a moment; the next block is not to find it
            peers.eventually(lambda: "LISTEN" not in peers.states(int(self._port(port))), "the end of the listener")
        self._compare(block, file.read_text(errors="replace"), 0 if process.returncode < 0 else process.returncode)

    def _popen(self, block: Block) -> tuple[subprocess.Popen[bytes], Path]:
        file = self.folder / ".bin" / f"printed-{len(list((self.folder / '.bin').iterdir()))}"
        text = self._with_free_ports(block.text)
        command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-c", _script(block, text)]
        with file.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process, file

    def _compare(self, block: Block, printed: str, code: int) -> None:
        if block.language != "console":
            assert code == 0, f"it ends with {code}: {printed}"
            return
        said = printed.split(_MARK)[1:]
        steps = list(_steps(self._with_free_ports(block.text)))
        for (command, expected), (following, _), text in zip(steps, [*steps[1:], ("", "")], said, strict=False):
            text, _, status = text.partition("\x02")
            if following != "echo $?":
                assert status.strip() in ("0", ""), f"{command!r} ends with {status.strip()}: {text}"
            if command == "echo $?":
                assert text.strip() == expected.strip(), (
                    f"{command!r} prints {text.strip()}, and not {expected.strip()}"
                )
            check(expected, text, command)
        assert len(said) == len(steps), f"it ended early with {code}: {printed}"

    def _with_free_ports(self, text: str) -> str:
        return _PORT.sub(lambda match: self._port(match[0]), text)

    def _port(self, written: str) -> str:
        if written not in self._ports:
            self._ports[written] = str(peers.free_port())
        return self._ports[written]

    def _told(self) -> str:
        return "".join(f"\nmeanwhile: {file.read_text(errors='replace')}" for _, file, _ in self._background.values())


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what a block has started, all of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block, and what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        count = 1
        while lines[count - 1].rstrip("\n").endswith("\\"):
            count += 1
        yield "".join(lines[:count]).rstrip("\n"), "".join(lines[count:])


def _script(block: Block, text: str) -> str:
    """Return what bash runs: each command between marks, so that it is known what each prints and how it ends."""
    if block.language == "bash":
        return f"set -e\n{text}"
    last = "s=0\n"
    for command, _ in _steps(text):
        last += f"printf '\\001\\n'\n(exit $s)\n{command}\ns=$?\n"
        if not re.search(r"&\s*(#.*)?$", command):
            last += "printf '\\002%d\\n' $s\n"
    return last + "exit $s\n" if block.order != "background" else last


def check(expected: str, printed: str, command: str = "") -> None:
    """Fail where a block does not print what the page says, if that says anything."""
    pattern = ""
    for line in expected.splitlines():
        if not line.strip():
            continue
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
            continue
        words = re.sub(r"\d+(?:\\?\.\d+)*", r"[\\d.]+", re.escape(line.rstrip()).replace(r"\.\.\.", ".*"))
        words = re.sub(r"\b[KMG]iB\b", r"[KMG]?i?B", words)
        pattern += re.sub(r"(\\ )+", r"\\s+", words) + r"\s*?\n"
    text = "".join(f"{line.rstrip()}\n" for line in printed.splitlines() if line.strip())
    assert not pattern or re.search(pattern, text), f"{command!r} prints {text!r}, and not {expected!r}"
