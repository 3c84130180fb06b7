"""Who may import whom, read from the imports themselves."""

import ast
import re
from pathlib import Path

import pytest

import ringmain

PACKAGE = Path(ringmain.__file__).parent
MAY_IMPORT = {
    "errors": set(),
    "settings": {"errors"},
    "endpoint": {"errors"},
    "remedies": {"errors"},
    "tls": {"_libssl", "errors", "settings"},
    "attempts": {"errors"},
    "connection": {"_libssl", "attempts", "endpoint", "errors", "remedies", "settings"},
    "kernel": {"_pump", "errors", "waiting"},
    "waiting": set(),
    "ending": {"_libssl", "_tls_sender", "connection", "errors", "liveness"},
    "liveness": set(),
    "sender": {"_pump", "_ring", "connection", "ending", "errors", "kernel"},
    "listeners": {"connection", "endpoint", "errors", "settings"},
    "gate": {"connection", "endpoint", "errors", "listeners", "settings"},
    "stream": {
        "_coalesce",
        "_libssl",
        "_pump",
        "_receiver",
        "_ring",
        "_tls_receiver",
        "connection",
        "errors",
        "kernel",
    },
    "blocking": {"errors"},
    "file": {"errors", "loader", "saver", "settings"},
    "loader": {
        "_ring",
        "blocking",
        "connection",
        "descriptor",
        "endpoint",
        "errors",
        "gate",
        "settings",
        "stream",
        "tls",
        "waiting",
    },
    "saver": {"_ring", "blocking", "connection", "endpoint", "errors", "gate", "sender", "settings", "tls"},
    "input_saver": {"_pump", "descriptor", "errors", "kernel", "saver", "sender"},
    "proxy": {"connection", "endpoint", "errors"},
    "passage": {"_libssl", "_ring", "connection", "errors", "kernel", "sender", "stream", "waiting"},
    "relayer": {
        "_ring",
        "blocking",
        "connection",
        "endpoint",
        "errors",
        "gate",
        "kernel",
        "passage",
        "proxy",
        "settings",
        "stream",
        "tls",
        "waiting",
    },
    "descriptor": {"_pump", "_ring", "connection", "errors"},
    "interfaces": set(),
    "progress": set(),
    "signals": set(),
    "__main__": {"cli", "signals"},
    # What `ringmain bench` is made of; only the command line imports it.
    "bench": {
        "_pump",
        "_records",
        "_ring",
        "bench",
        "connection",
        "descriptor",
        "endpoint",
        "errors",
        "gate",
        "listeners",
        "progress",
        "sender",
        "settings",
        "stream",
        "tls",
    },
    "feeds": {
        "_records",
        "errors",
        "feeds",
        "file",
        "loader",
        "stream",
    },  # each of its modules; nothing else imports them
    # Each of its modules; nothing else imports them, and pytest is imported by the plugin only.
    "testing": {"connection", "endpoint", "errors", "gate", "loader", "sender", "settings", "testing", "tls"},
    "pytest_plugin": {"testing"},
    "__init__": {
        "_ring",
        "endpoint",
        "errors",
        "file",
        "interfaces",
        "loader",
        "relayer",
        "saver",
        "settings",
        "stream",
    },
}
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
        assert names <= set(MAY_IMPORT) - {"feeds", "testing", "pytest_plugin"} | {"_ring", "cli"}
    elif module.parts[0] in ("bench", "feeds", "testing"):
        assert names <= MAY_IMPORT[module.parts[0]]
    else:
        assert names <= MAY_IMPORT[module.stem]
    foreign = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "pytest" not in foreign or module.stem == "pytest_plugin"
    prints = any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(tree))
    assert not prints or module.parts[0] == "cli" or module.stem == "progress"


def test_compiled_modules_know_no_settings_and_the_ring_no_event_loop() -> None:
    sources = Path(__file__).parent.parent / "ext" / "ringmain"
    if not sources.exists():
        pytest.skip("the Cython sources are not beside these tests")
    for source in sources.glob("*.pyx"):
        imported = set(re.findall(r"^\s*(?:from|import|cimport) ([\w.]+)", source.read_text(), re.MULTILINE))
        ours = {name for name in imported if name.startswith("ringmain")}
        assert ours <= {f"ringmain.{name}" for name in ("_ring", "_coalesce", "_libssl", "_receiver", "_tls_receiver")}
        assert not imported & {"click", "logging", "asyncio", "uvloop"}
        if source.stem == "_ring":
            assert not ours
            assert not imported & {"socket", "ssl", "os"}
