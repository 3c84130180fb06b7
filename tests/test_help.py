"""Help as wide as what shows it, in groups; words for what was meant otherwise; what shells complete."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import peers
import pytest

from ringmain.cli.command import GROUPS, Command
from ringmain.cli.commands import cli
from ringmain.cli.replay import bench_load, bench_save

COMMANDS = [*(cli.commands[name] for name in ("load", "save", "relay", "bench")), bench_load, bench_save]


def shown(*arguments: str, columns: int = 80, **environment: str) -> str:
    """Return what the command prints."""
    env = {**os.environ, "COLUMNS": str(columns), **environment}
    return subprocess.run([*peers.RINGMAIN, *arguments], capture_output=True, text=True, check=True, env=env).stdout


def refused(*arguments: str, **environment: str) -> str:
    """Return the line of a command that cannot begin."""
    env = {**os.environ, **environment}
    result = subprocess.run([*peers.RINGMAIN, *arguments], capture_output=True, text=True, env=env)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


def flags_in(text: str) -> list[str]:
    return re.findall(r"^  (?:-\w, )?(-{1,2}[\w-]+)", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda it: it.name)
def test_what_is_needed_first_is_little_and_each_other_option_has_a_group(command: Command) -> None:
    groups = command.groups()
    assert next(iter(groups)) == "main"
    assert 3 <= len(groups["main"]) <= 8  # a new option is to have a group of its own kind
    options = [it for it in command.params if isinstance(it, click.Option) and not it.hidden]
    assert sorted(it.name for of_group in groups.values() for it in of_group) == sorted(it.name for it in options)


def test_each_option_of_a_group_stands_there() -> None:
    baselines = {it.opts[-1] for it in cli.commands["bench"].groups()["baselines"]}  # type: ignore[attr-defined]
    flags = ["--save-baseline", "--baseline", "--rounds", "--noise-threshold", "--fail-on", "--force"]
    assert baselines == set(flags)
    known = {name for _, names in GROUPS.values() for name in names.split()}
    for command in COMMANDS:
        names = {it.name.removeprefix("source_").removeprefix("destination_") for it in command.params if it.name}
        assert names - known <= {"endpoint", "source", "destination"}


@pytest.mark.parametrize("verb", ["load", "save", "relay", "bench"])
def test_help_shows_what_is_needed_first_then_a_group_or_all(verb: str) -> None:
    command: Any = cli.commands[verb]
    groups = {name: {it.opts[-1] for it in options} for name, options in command.groups().items()}
    first = shown(verb, "--help")
    assert set(flags_in(first)) == groups["main"] | {"--help"}
    for name in groups:
        assert name == "main" or re.search(rf"^  {name} ", first, re.MULTILINE)
        assert set(flags_in(shown(verb, "--help", name))) - {"--help"} == groups[name]
    everything = shown(verb, "-h", "all")
    assert set(flags_in(everything)) == set().union(*groups.values(), {"--help"})
    assert "TLS:" in everything


def test_a_group_that_is_none_is_told_of_with_those_there_are() -> None:
    assert "'ssl' is not one of 'main', 'connections', 'tls'" in refused("load", "--help", "ssl")


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("arguments", [["--help"], ["load", "--help"], ["relay", "--help", "all"], ["bench", "--help"]])
def test_help_is_as_wide_as_there_is_room(arguments: list[str], columns: int) -> None:
    lines = shown(*arguments, columns=columns).splitlines()
    breakable = [line for line in lines if not re.match(r" +(ringmain |-)", line)]  # no command, no option's name
    assert max(map(len, breakable)) <= columns
    assert max(map(len, lines)) > min(columns, 100) - 12  # and wide enough


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["load", "-o", "out.ndjson", "tcp://127.0.0.1:1"],
            "unexpected argument 'tcp://127.0.0.1:1': -o is --listen-once, which takes no value; -O is --output, which",
        ),
        (["save", "--listen", "file", "tcp://127.0.0.1:1"], "--listen is --listen, which takes no value"),
        (["load", "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"], "unexpected argument 'tcp://127.0.0.1:2'; see"),
        (["load", "-o", "tcp://127.0.0.1:1", "more"], "unexpected argument 'more'; --output names a file; see"),
        (["save", "tcp://127.0.0.1:1", "file"], "unexpected argument 'file'; --input names a file; see"),
        (["save", "file", "tcp://127.0.0.1:1"], "unexpected argument 'tcp://127.0.0.1:1'; --input names a file; see"),
        (["relay", "tcp://:1", "tcp://:2", "more"], "unexpected argument 'more'; see"),
        (["save", "-i", "file", "tcp://127.0.0.1:1"], "No such option '-i': -I is --input; see"),
        (["load", "-c", "-k", "tcps://127.0.0.1:1"], "what curl calls -k is --insecure"),
    ],
)
def test_a_flag_that_means_something_else_elsewhere_is_explained(arguments: list[str], words: str) -> None:
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("IDLE_TIMEOUT", "soon", "'--idle-timeout' (set by RINGMAIN_LOAD_IDLE_TIMEOUT): 'soon' is not a duration"),
        ("CONNECT", "perhaps", "'--connect' (set by RINGMAIN_LOAD_CONNECT)"),
        ("KEEPALIVE", "12h", "--keepalive (set by RINGMAIN_LOAD_KEEPALIVE) 43200.0: "),  # what the library refuses
        ("FINGERPRINT", "AB", "--fingerprint (set by RINGMAIN_LOAD_FINGERPRINT)"),
    ],
)
def test_a_bad_value_from_the_environment_names_its_variable(name: str, value: str, words: str) -> None:
    assert words in refused("load", "tcps://127.0.0.1:0", **{f"RINGMAIN_LOAD_{name}": value})


def test_a_variable_is_named_as_it_is_written_whatever_the_keyword_is_called() -> None:
    assert "'--json' (set by RINGMAIN_NICS_JSON)" in refused("nics", RINGMAIN_NICS_JSON="perhaps")


def test_what_the_command_line_says_is_not_laid_at_the_environments_door() -> None:
    line = refused("load", "--idle-timeout", "soon", "tcp://127.0.0.1:0", RINGMAIN_LOAD_IDLE_TIMEOUT="5s")
    assert "RINGMAIN" not in line
    assert "'soon'" in line


def test_a_count_that_is_none_is_told_of_as_a_number() -> None:
    assert "'--max-connections': 'x' is not a valid integer; see" in refused(
        "load", "--max-connections", "x", "tcp://:0"
    )


def test_bench_takes_the_host_alone() -> None:
    events = subprocess.run(
        [*peers.RINGMAIN, "bench", "127.0.0.1", "--json", "--connect-timeout", "3s"], capture_output=True, text=True
    )
    assert "127.0.0.1:5201" in json.loads(events.stdout).get("error", "127.0.0.1:5201")  # should a server be there


def completed(shell: str, *words: str) -> list[str]:
    """Return what is offered for the last word, as "type,value" lines."""
    values = {"bash": ("\n".join(words), str(len(words) - 1)), "fish": (" ".join(words), words[-1])}
    line, at = values.get(shell, values["bash"])
    env = {**os.environ, "COMP_WORDS": line, "COMP_CWORD": at, "_RINGMAIN_COMPLETE": f"{shell}_complete"}
    output = subprocess.run(peers.RINGMAIN, env=env, capture_output=True, text=True).stdout
    return output.splitlines()


@pytest.mark.parametrize("command", COMMANDS[:3], ids=lambda it: it.name)
def test_shells_complete_the_name_of_each_file(command: Command) -> None:
    files = [it.opts[-1] for it in command.params if it.metavar in ("FILE", "PEM")]
    assert len(files) >= 8
    assert completed("bash", "ringmain", str(command.name), files[0], "/tm") == ["file,/tm"]
    for it in command.params:
        if it.metavar in ("FILE", "PEM"):
            assert [item.type for item in it.type.shell_complete(click.Context(command), it, "x")] == ["file"]


def test_shells_complete_how_an_endpoint_begins() -> None:
    assert completed("bash", "ringmain", "load", "tcps") == ["plain,tcps://:", "plain,tcps://127.0.0.1:"]
    assert completed("bash", "ringmain", "save", "unix", ":", "/ru") == ["file,/ru"]  # bash cuts at the colon
    assert completed("fish", "ringmain", "relay", "./fi") == ["file,./fi"]
    assert "plain,tls" in completed("bash", "ringmain", "load", "--help", "t")


def test_bash_completes_a_file_for_certain(tmp_path: Path) -> None:
    peers.need("bash")
    command = Path(sys.executable).with_name("ringmain")
    if not command.exists():
        pytest.skip("the entry point is installed elsewhere")
    (tmp_path / "only-one.ndjson").touch()
    pid, terminal = pty.fork()
    if pid == 0:
        env = {
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "TERM": "dumb",
            "PS1": "ready$ ",
            "HOME": str(tmp_path),
        }
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)
    try:
        seen = b""

        def until(text: bytes) -> None:
            nonlocal seen
            deadline = time.monotonic() + peers.TIMEOUT
            while text not in seen:
                assert time.monotonic() < deadline, seen
                if select.select([terminal], [], [], 0.1)[0]:
                    seen += os.read(terminal, 4096)

        os.write(terminal, b'eval "$(_RINGMAIN_COMPLETE=bash_source ringmain)"; echo de""fined\n')
        until(b"defined\r\n")
        for words in (b"ringmain load --output only", b"ringmain save unix:only"):
            os.write(terminal, words + b"\t")
            until(words + b"-one.ndjson")
            os.write(terminal, b"\x15")  # ^U: forget the line
    finally:
        os.write(terminal, b"\x15exit\n")
        os.close(terminal)
        os.waitpid(pid, 0)
