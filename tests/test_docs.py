"""The documentation: what it tells to run does run, and the reference leaves nothing out."""

import sys
from pathlib import Path

import documented
import peers
import pytest
from feeding import library

ROOT = documented.ROOT
if not (ROOT / "docs").exists():
    pytest.skip("the documentation is not beside these tests", allow_module_level=True)
PAGES = {str(path.relative_to(ROOT)): path for path in documented.pages()}
# What a page needs besides ringmain: programs, and Python's libraries.
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "README.md": ((), ("msgspec",)),
    "docs/tutorial/command-line.md": (("openssl",), ()),
    "docs/tutorial/python.md": ((), ("msgspec", "polars", "pyarrow")),
    "docs/howto/framing.md": (("logger",), ()),
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
