"""Who may import whom, read from the imports themselves."""

import ast
import re
from pathlib import Path

import pytest

import ringmain

PACKAGE = Path(ringmain.__file__).parent
# Rooms, from what knows least to what knows most, and what each may import besides its own modules.
WORDS = {"errors", "endpoint", "keywords", "log", "outcome", "settings", "waiting"}
COMPILED = {path.stem for path in (Path(__file__).parent.parent / "ext" / "ringmain").glob("*.pyx")}
# Of the sources: declarations only.
DECLARED = {"_clock", "_epoll", "_splice", "_unraisable"}
MAY_IMPORT = {
    "errors": set(),
    "outcome": {"_counters", "errors"},
    "log": {"outcome"},
    "keywords": set(),
    "settings": {"errors", "keywords"},
    "endpoint": {"errors"},
    "waiting": {"errors"},
    "interfaces": {"errors"},
    "progress": {"terminal"},
    "terminal": set(),
    "net": WORDS | COMPILED,
    "flow": WORDS | COMPILED | {"net"},
    "stream": {"_counters", "_ring", "errors", "flow"},
    "iterators": {"stream", "flow"},
    "blocking": {"errors"},
    "plain": {"_counters", "endpoint", "outcome", "settings"},
    # The verbs for Python; none imports another.
    "loader": WORDS | COMPILED | {"net", "flow", "blocking", "iterators", "stream"},
    "saver": WORDS | COMPILED | {"net", "flow", "blocking", "plain"},
    "relayer": WORDS | COMPILED | {"net", "flow", "blocking", "plain"},
    "sources": {"endpoint", "engines", "flow", "keywords", "loader", "settings"},
    "destinations": {"endpoint", "engines", "keywords", "relayer", "saver", "settings"},
    "file": {"errors", "keywords", "loader", "saver", "settings", "sources"},
    "connection": WORDS | COMPILED | {"net", "flow"},
    "dialled": WORDS | {"net", "flow", "connection"},
    "server": WORDS | {"net", "flow", "connection"},
    # Distributed logs; `cli` and whoever gives out what `ringmain.load` and the other verbs return imports them.
    "engines": WORDS | COMPILED | {"net", "flow", "blocking", "iterators", "plain", "stream"},
    # What `ringmain bench` is made of; only the command line imports it.
    "bench": WORDS | COMPILED | {"net", "flow", "progress", "engines", "terminal"},
    # Nothing else imports these.
    "feeds": {"_frames", "_json", "_records", "engines", "errors", "file", "keywords", "loader", "settings", "stream"},
    # pytest is imported by the plugin only.
    "testing": {"net", "endpoint", "errors", "flow", "outcome", "settings", "sources", "terminal"},
    "pytest_plugin": {"testing"},
    "__init__": WORDS
    | {
        "_counters",
        "connection",
        "destinations",
        "dialled",
        "engines",
        "file",
        "interfaces",
        "loader",
        "plain",
        "relayer",
        "saver",
        "server",
    }
    | {"sources", "stream"},
    "__main__": {"cli", "errors", "terminal"},
}
# Each of these holds several modules, which may import one another.
ROOMS = {"net", "flow", "engines", "bench", "feeds", "testing"}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports_of(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ringmain":
            rest = node.module.split(".")[1:]
            names |= {rest[0]} if rest else {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ringmain.")}
    return names


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_each_module_imports_only_what_the_table_allows(module: Path) -> None:
    tree = ast.parse((PACKAGE / module).read_text())
    names = imports_of(tree)
    if module.parts[0] == "cli":
        assert names <= set(MAY_IMPORT) - {"feeds", "testing", "pytest_plugin"} | {"_counters", "cli"}
    elif module.parts[0] in ROOMS:
        assert names <= MAY_IMPORT[module.parts[0]] | {module.parts[0]}
    else:
        assert names <= MAY_IMPORT[module.stem]
    foreign = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "pytest" not in foreign or module.stem == "pytest_plugin"
    prints = any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(tree))
    assert not prints or module.parts[0] == "cli" or module.stem == "progress"


def test_each_module_has_its_place_in_the_map_of_the_house_and_no_other_has() -> None:
    guide, sources = (Path(__file__).parent.parent / name for name in ("CONTRIBUTING.md", "src/ringmain"))
    if not guide.exists() or not sources.exists():
        pytest.skip("the guide and the sources are not beside these tests")
    rooms = guide.read_text().partition("## Rooms\n")[2].partition("\n## ")[0]
    places: list[str] = []
    for row in re.findall(r"^\| (`.+?) \|", rooms, re.MULTILINE):
        folder = ""  # the first name of a row says it for all of them
        for name in re.findall(r"`([\w/]+)`", row):
            folder, own = name.rpartition("/")[::2] if "/" in name else (folder, name)
            places += [f"{folder}/{own}".removeprefix("/")] if own else []
    apart = ("feeds", "bench", "testing")  # a module each, or tables of their own
    modules = [str(it.relative_to(sources).with_suffix("")) for it in sources.rglob("*.py") if "__" not in it.stem]
    modules = [it for it in modules if it.partition("/")[0] not in apart]
    assert sorted(places) == sorted([*modules, *(f"ext/{name}" for name in COMPILED)])


def test_compiled_modules_know_no_settings_and_the_ring_no_event_loop() -> None:
    sources = Path(__file__).parent.parent / "ext" / "ringmain"
    if not sources.exists():
        pytest.skip("the Cython sources are not beside these tests")
    for source in sources.glob("*.pyx"):
        imported = set(re.findall(r"^\s*(?:from|import|cimport) ([\w.]+)", source.read_text(), re.MULTILINE))
        ours = {name for name in imported if name.startswith("ringmain")}
        assert ours <= {f"ringmain.{name}" for name in COMPILED | DECLARED}
        assert not imported & {"click", "logging", "asyncio", "uvloop"}
        if source.stem in ("_blocks", "_counters", "_cutter", "_delimiter", "_frames", "_ring"):
            known = ("_blocks", "_cutter", "_delimiter", "_unraisable")
            assert ours <= {f"ringmain.{name}" for name in known}
            assert not imported & {"socket", "ssl", "os"}
