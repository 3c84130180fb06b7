"""The documentation: what it tells to run does run, and the reference leaves nothing out."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import click
import documented
import peers
import pytest
from feeding import library

import ringmain.testing
from ringmain import errors
from ringmain.bench import table
from ringmain.cli import stats
from ringmain.cli.commands import cli
from ringmain.cli.flags import as_flags, stand_for
from ringmain.cli.replay import bench_load, bench_save
from ringmain.net import remedies
from ringmain.outcome import Certificate, Credentials, State, Verdict
from ringmain.settings import LogOptions, Options

ROOT = documented.ROOT
if not (ROOT / "docs").exists():
    pytest.skip("the documentation is not beside these tests", allow_module_level=True)
SOURCE = Path(ringmain.__file__).parent
PAGES = {str(path.relative_to(ROOT)): path for path in documented.pages()}
# What a page needs besides ringmain: programs, and Python's libraries.
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "README.md": ((), ("msgspec",)),
    "docs/tutorial/command-line.md": (("openssl",), ()),
    "docs/tutorial/python.md": ((), ("msgspec", "polars", "pyarrow")),
    "docs/howto/framing.md": (("logger",), ()),
    "docs/howto/metrics.md": ((), ("prometheus_client",)),
    "docs/howto/measure.md": (("socat",), ()),
    "docs/howto/nats.md": (("nats-server",), ("nats",)),
    "docs/howto/parsers.md": ((), ("msgspec", "pyarrow", "duckdb", "polars", "pandas", "fsspec", "numpy")),
    "docs/howto/pytest.md": ((), ("trustme",)),
    "docs/howto/replace.md": (("openssl",), ()),
    "docs/howto/tls.md": (("openssl",), ()),
}


@pytest.mark.parametrize(
    "page", [name for name, path in PAGES.items() if any(it.is_run for it in documented.blocks(path))]
)
def test_what_a_page_tells_to_run_does_what_it_says(page: str, tmp_path: Path) -> None:
    programs, libraries = NEEDS.get(page, ((), ()))
    for program in programs:
        if not Path(sys.executable).with_name(program).exists():
            peers.need(program)
    for name in libraries:
        library(name)
    reader = documented.Reader(tmp_path)
    try:
        reader.read(documented.blocks(PAGES[page]))
    finally:
        reader.close()


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_run_or_says_why_not(page: str) -> None:
    for block in documented.blocks(PAGES[page]):
        where = f"{page}, line {block.line}"
        assert block.language, f"{where}: a block without a language"
        assert block.order in ("", "background", "after", "file", "output", "skip"), where
        assert block.argument or block.order in ("", "output"), f"{where}: {block.order} of what?"
        assert not (block.is_run and block.language == "console") or block.text.startswith("$ "), f"{where}: no prompt"
        assert block.language not in ("sh", "shell", "pycon", "py"), f"{where}: call it console, bash or python"


def text(page: str) -> str:
    return PAGES[page].read_text()


def missing(words: Iterable[str], page: str) -> list[str]:
    """Return those words that do not stand on a page as code, or in a cell by themselves."""
    there = set(re.findall(r"`([^`\n]+)`", text(page)))
    return sorted(set(words) - there)


def generated(name: str) -> str:
    """Return what a module beside the documentation makes of the code."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'docs')!r}); import {name}; print({name}.shown())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def every_command() -> dict[str, click.Command]:
    commands = {f"ringmain {name}": command for name, command in cli.commands.items()}
    return {"ringmain": cli, **commands, "ringmain bench load": bench_load, "ringmain bench save": bench_save}


def test_the_reference_has_every_option_with_its_default_and_variable() -> None:
    assert "{all-commands}" in text("docs/reference/command-line.md")
    sections = dict(re.findall(r"^## (ringmain.*?)\n(.*?)(?=^## |\Z)", generated("commands"), re.MULTILINE | re.DOTALL))
    assert set(sections) == set(every_command())
    for name, command in every_command().items():
        for option in (it for it in command.params if isinstance(it, click.Option) and not it.hidden):
            [line] = re.findall(
                rf"^`[^`]*(?<![\w-]){re.escape(option.opts[-1])}(?![\w-]).*$", sections[name], re.MULTILINE
            )
            assert len(line) > len(option.opts[-1]) + 10, f"{name}: {line}"
            if "Environment: " in line:  # by the flag's name, whatever the keyword behind it is
                flag = next(it for it in option.opts if it.startswith("--"))
                assert f"`{name} {flag[2:]}`".upper().replace(" ", "_").replace("-", "_") in line, line
            else:
                assert not option.expose_value or option.name == "family", line
            if option.show_default:
                assert "default: " in line, f"{name}: {line}"


def test_the_reference_has_every_variable_that_the_code_reads() -> None:
    words: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        code = path.read_text()
        words |= (
            set(re.findall(r"\b_?RINGMAIN_[A-Z][A-Z_]*[A-Z]\b", code))
            if "cli" not in path.relative_to(SOURCE).parts
            else set()
        )
        words |= set(re.findall(r"os\.environb?(?:\.pop\(|\.get\(|\[)\"(\w+)\"", code))
        words |= set(re.findall(r"\bgiven(?:\.get\(|\[)\"(LISTEN_\w+)\"", code))
        words |= set(re.findall(r"\"(RINGMAIN_[A-Z]+)\"", code))
    assert {"RINGMAIN_KEY_PASSWORD", "NOTIFY_SOCKET", "LISTEN_FDS", "RINGMAIN_LISTENER", "RINGMAIN_PEER"} <= words
    assert not missing(words, "docs/reference/environment.md")
    switches = set(re.findall(r"switched_on\(\"(\w+)\"\)", (ROOT / "setup.py").read_text()))
    assert not missing({f"RINGMAIN_{it}" for it in switches}, "docs/reference/environment.md")


def every_error() -> list[type[errors.RingmainError]]:
    kinds = [it for it in vars(errors).values() if isinstance(it, type) and issubclass(it, errors.RingmainError)]
    assert len(kinds) > 15
    return kinds


def test_the_reference_has_every_exit_code_and_class() -> None:
    rows = re.findall(r"^\| (\d+) \| .+? \| (.*?) ?\|$", text("docs/reference/exit-codes.md"), re.MULTILINE)
    by_class = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert by_class == {it.__name__: it.exit_code for it in every_error()}
    codes = [int(code) for code, _ in rows]
    assert codes == sorted(set(codes))
    assert {0, 75, 129, 130, 143} <= set(codes)


def test_troubleshooting_has_every_error_class_and_what_to_do_about_a_handshake() -> None:
    page = text("docs/troubleshooting.md")
    headings = dict(re.findall(r"^### (\w+): (\d+)$", page, re.MULTILINE))
    assert headings == {it.__name__: str(it.exit_code) for it in every_error()}
    stand_for(option.name for option in cli.commands["load"].params if option.name)
    of_certificates = list(remedies._OF_CERTIFICATES.values())
    for remedy in [*of_certificates, *remedies._OF_HANDSHAKES.values()]:
        assert as_flags(remedy.format(prefix="", trust="cafile=")).rstrip() in page, remedy
    for words in remedies._OF_HANDSHAKES:
        assert words in page, words


def test_every_error_that_is_made_in_the_code_is_among_the_error_lines() -> None:
    lines = generated("generated")
    assert "{error-lines}" in text("docs/reference/errors.md")
    for kind in every_error():
        if kind is not errors.BlocksHeldError:
            assert f"## {kind.__name__}: exit code {kind.exit_code}" in lines
    assert "| what was sent may not have arrived |" in lines


def keys_of(module: ModuleType) -> set[str]:
    """Return the keys of all dictionaries that a module writes down."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    keys = {key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
    return {str(key.value) for key in keys if isinstance(key, ast.Constant)}


def test_the_reference_has_every_field_of_the_stats_rows_and_every_verdict() -> None:
    words = keys_of(stats) | set(Certificate._fields) | set(Credentials._fields) | set(State) | set(Verdict)
    assert {"stalled_seconds", "exec_exit", "event", "peak", "proxy", "verdict"} <= words
    assert not missing(words - {""}, "docs/reference/stats.md")


def heads_of(module: ModuleType) -> set[str]:
    """Return what stands over the columns of a module's tables: rows that begin with an empty cell."""

    def texts(node: ast.AST) -> set[str]:
        return {it.value for it in ast.walk(node) if isinstance(it, ast.Constant) and isinstance(it.value, str)}

    tree = ast.parse(Path(str(module.__file__)).read_text())
    heads: set[str] = set()
    parts: set[str] = set()
    for row in ast.walk(tree):
        if (
            isinstance(row, ast.Tuple)
            and isinstance(next(iter(row.elts), None), ast.Constant)
            and row.elts[0].value == ""
        ):
            heads |= texts(row)
            parts |= {it.id for cell in row.elts for it in ast.walk(cell) if isinstance(it, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and parts & {it.id for it in ast.walk(node) if isinstance(it, ast.Name)}:
            heads |= texts(node.value)
    return {head.replace("\n", " ") for head in heads} - {""}


def test_the_reference_has_every_column_of_the_bench_and_every_name_of_its_schema() -> None:
    heads = heads_of(table)
    assert {"GB/s", "records/s", "interval", "peer's CPU s/GB"} <= heads
    assert not missing(heads, "docs/reference/bench.md")

    def names(schema: object) -> Iterator[str]:
        if isinstance(schema, dict):
            yield from schema.get("properties", {})
            for it in schema.values():
                yield from names(it)

    schema = json.loads((SOURCE / "bench" / "schema.json").read_text())
    assert not missing(names(schema), "docs/reference/bench.md")


def test_the_reference_of_python_has_every_public_name_and_keyword() -> None:
    page = text("docs/reference/python.md")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'docs')!r}); import generated; print(generated.public_names())"
    names = ast.literal_eval(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert set(re.findall(r"\{public-names\} (\w+)", page)) == set(names)
    told = set(re.findall(r"ringmain\.([\w.]+)", " ".join(line for lines in names.values() for line in lines)))
    feeds = {f"feeds.{path.stem}" for path in (SOURCE / "feeds").glob("[a-z]*.py")}
    assert told == set(ringmain.__all__) | feeds | {f"testing.{name}" for name in ringmain.testing.__all__}
    keywords = set(Options.__annotations__) | set(LogOptions.__annotations__)
    assert not missing(keywords, "docs/reference/python.md")


def test_links_between_pages_lead_somewhere() -> None:
    for name, path in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{name}: {target}"


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    for name in (
        "sphinx",
        "furo",
        "myst_parser",
        "msgspec",
        "pyarrow",
        "numpy",
        "polars",
        "pandas",
        "duckdb",
        "fsspec",
    ):
        library(name)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        ROOT / "docs",
        tmp_path / "built",
    ]
    built = subprocess.run([*command, "-d", tmp_path / "trees"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in (tmp_path / "built").rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?://[^\"]*)\"", page.read_text())
        assert not fetched, f"{page.name} fetches {fetched}"
