"""What `ringmain bench` takes from a folder and leaves there: no module of it is run, its files are whole or absent."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import peers
import pytest
from measuring import checked, measured, serving

from ringmain.bench.files import try_to_write, write
from ringmain.errors import OutputError
from ringmain.testing import Peers

RINGMAIN = str(Path(sys.executable).with_name("ringmain"))
# What each process imports early, or would like to.
PLANTED = ("json", "logging", "uvloop", "asyncio", "socket", "signal", "sitecustomize", "usercustomize", "_ssl")
PLANT = """
import pathlib, sys
with open({log!r}, "a") as log:
    log.write(__name__ + "\\n")
sys.exit("a planted module was run")
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder full of modules that nobody wants; return where they would note that they were run."""
    folder, log = tmp_path / "planted", tmp_path / "run"
    for name in (*PLANTED, "ringmain/__init__", "ringmain/__main__", "encodings/__init__"):
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PLANT.format(log=str(log)))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return log


@pytest.mark.parametrize("path", [None, ""], ids=["no PYTHONPATH", "an empty PYTHONPATH"])
def test_no_process_of_bench_runs_modules_of_the_working_directory(
    bench: peers.Bench, planted: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    port_file = bench.folder / "port"
    server = bench.start([RINGMAIN, "bench", "--server", "tcp://127.0.0.1:0", "--port-file", str(port_file)])
    port = int(peers.eventually(lambda: port_file.exists() and port_file.read_text(), "the port file"))
    for way in ((), ("--reverse",)):
        command = [RINGMAIN, "bench", f"127.0.0.1:{port}", "-n", "1M", "-P", "2", "--processes", "--json", *way]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr + server.stderr
        assert checked(done.stdout)["end"]["sum_received"]["bytes"] == 1 << 20
    assert not planted.exists(), planted.read_text()


def test_no_peer_of_a_test_runs_modules_of_the_working_directory(planted: Path, ringmain_peer: Peers) -> None:
    peer = ringmain_peer.loader()
    with peers.connect(peer.port) as sock:
        sock.sendall(b"some")
    assert peer.wait().size == 4
    assert not planted.exists(), planted.read_text()


def names(folder: Path) -> list[str]:
    return sorted(it.name for it in folder.iterdir())


def test_trying_a_file_changes_nothing(tmp_path: Path) -> None:
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("old")
    os.utime(there, (1, 1))
    try_to_write(str(there), "--report")
    try_to_write(str(new), "--report")
    assert names(tmp_path) == ["there"]
    assert (there.read_text(), there.stat().st_mtime) == ("old", 1)


def test_a_file_that_another_process_makes_meanwhile_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    stat = Path.stat

    def stat_then_another_makes_it(self: Path, **options: bool) -> os.stat_result:
        try:
            return stat(self, **options)
        finally:
            file.write_text("another's")

    monkeypatch.setattr(Path, "stat", stat_then_another_makes_it)
    try_to_write(str(file), "--report")
    monkeypatch.undo()
    assert file.read_text() == "another's"


def test_a_file_is_replaced_whole_and_stays_who_it_was(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("a longer one")
    file.chmod(0o640)
    link.symlink_to("file")
    try_to_write(str(link), "--report")
    write(str(link), "new\n", "--report")
    assert file.read_text() == "new\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert names(tmp_path) == ["file", "link"]
    umask = os.umask(0o027)
    try:
        write(str(tmp_path / "new"), "text", "--report")
    finally:
        os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("old", [None, "old\n"], ids=["a new file", "a file that is there"])
@pytest.mark.parametrize("option", ["--report", "--save-baseline"])
def test_a_file_that_could_not_be_written_to_its_end_is_as_it_was(
    bench: peers.Bench, tmp_path: Path, option: str, old: str | None
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if old is not None:
        (folder / "file").write_text(old)
    endpoint = serving(bench)

    def little_room() -> None:  # as on a disk that is full after the first bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    options = ("-t", "50ms", "-O", "10ms", "--rounds", "3", option, folder / "file")
    error = measured(endpoint, *options, code=23, preexec_fn=little_room)["error"]
    assert f"choose another {option}" in error
    assert names(folder) == ([] if old is None else ["file"])
    assert old is None or (folder / "file").read_text() == old


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda it: it.name)
def test_a_signal_leaves_a_file_whole_or_as_it_was(tmp_path: Path, number: signal.Signals) -> None:
    code = """
import os, sys
from pathlib import Path
from ringmain.bench.files import write
import ringmain.bench.files as files
replace = Path.replace
def interrupted(self, other):
    os.kill(os.getpid(), int(sys.argv[2]))  # when all is written but nothing in its place
    return replace(self, other)
Path.replace = interrupted
write(sys.argv[1], "new", "--report")
"""
    file = tmp_path / "file"
    file.write_text("old")
    command = [sys.executable, "-P", "-c", code, str(file), str(number.value)]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert done.returncode == -number
    assert file.read_text() in ("old", "new")
    assert names(tmp_path) == ["file"]


def read(path: Path, into: list[str]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.append(path.read_text()))
    thread.start()
    return thread


def test_a_pipe_is_no_file_to_be_tried_or_replaced(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    try_to_write(str(pipe), "--report")  # nobody reads it yet
    reader = read(pipe, got)
    write(str(pipe), "text", "--report")
    reader.join(peers.TIMEOUT)
    assert got == ["text"]
    assert pipe.is_fifo()


def test_a_report_may_go_to_standard_output(bench: peers.Bench) -> None:
    command = [*peers.RINGMAIN, "bench", serving(bench), "-n", "1M", "--json", "--report", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    page, _, result = done.stdout.partition("</html>\n")
    assert page.startswith("<!DOCTYPE html>")
    assert "end" in checked(result)


@pytest.mark.parametrize("kind", ["a folder", "a loop of links", "in no folder"])
def test_what_cannot_be_written_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a loop of links":
        path.symlink_to(path)
    else:
        path = path / "in no folder"
    before = names(tmp_path)
    for attempt in (lambda: try_to_write(str(path), "--report"), lambda: write(str(path), "text", "--report")):
        with pytest.raises(OutputError, match="choose another --report"):
            attempt()
    assert names(tmp_path) == before


HOSTILE = {
    "nested": "[" * 100_000,
    "a figure of 401 digits": json.dumps(
        {
            "ringmain_baseline": 1,
            "machine": {},
            "tests": {
                "": {
                    "settings": {},
                    "rounds": [
                        {
                            "ringmain": {"gb_per_second": 10**400, "cpu_seconds_per_gb": 1},
                            "reference": {"gb_per_second": 1, "cpu_seconds_per_gb": 1},
                        }
                    ],
                }
            },
        }
    ),
    "no text": "\udcff",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_baseline_that_is_none_is_one_line_whatever_it_holds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(HOSTILE[text].encode(errors="surrogateescape"))
    error = measured("tcp://127.0.0.1:1", "--baseline", path, "--force", code=26)["error"]
    assert error.startswith(f"baseline {path}: ")
