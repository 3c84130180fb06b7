"""What the documentation takes from the code: the command line, the error lines, and docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import ringmain
from ringmain import errors

SOURCE = Path(ringmain.__file__).parent


class _Markdown(SphinxDirective):
    """A directive whose content is Markdown that is made here."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse it."""
        container = nodes.Element()
        self.state.nested_parse(StringList(list(self.lines()), source=__file__), self.content_offset, container, True)
        return container.children

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        raise NotImplementedError


class CommandPages(_Markdown):
    """All commands: a section each, with their examples and options."""

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        yield from commands.markdown()


class ErrorLines(_Markdown):
    """Every error line that the library and the command can end with: a table for each class."""

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        yield from error_tables()


def error_tables() -> Iterator[str]:
    """Yield a table of each class of errors."""
    for name, found in sorted(error_lines().items(), key=lambda it: getattr(errors, it[0]).exit_code):
        code = getattr(errors, name).exit_code
        yield from ["", f"## {name}: exit code {code}", "", "| what | why | what to do |", "|---|---|---|"]
        yield from (f"| {' | '.join(commands.plain(it) or '-' for it in line)} |" for line in sorted(found))
        yield ""


def shown() -> str:
    """Return the tables."""
    return "\n".join(error_tables())


def error_lines() -> dict[str, set[tuple[str, str, str]]]:
    """Return what, why and remedy of each error that the code makes, by its class; … stands for what is filled in."""
    found: dict[str, set[tuple[str, str, str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, errors.RingmainError):
                what, why, remedy = ([_words(it, _constants(node, tree)) for it in node.args] + ["", ""])[:3]
                if name == "ParseError":  # whose first arguments are who sent it, and the offset
                    what, why, remedy = "the record at offset … from …", remedy, ""
                limit = next((_words(it.value, {}) for it in node.keywords if it.arg == "limit"), "")
                if limit and limit != "…":
                    remedy = f"{remedy} else raise {limit}=" if remedy else f"raise {limit}="
                if re.search("[a-z]", what + why + remedy):  # else all of it is filled in
                    found.setdefault(name, set()).add((what, why, remedy))
    return found


def _constants(call: ast.Call, tree: ast.Module) -> dict[str, str]:
    """Return the texts that names stand for in the function around a call, and in its module."""
    around = [
        it
        for it in ast.walk(tree)
        if isinstance(it, ast.FunctionDef | ast.AsyncFunctionDef) and it.lineno <= call.lineno <= (it.end_lineno or 0)
    ]
    texts: dict[str, set[str]] = {}
    for node in (*tree.body, *(it for function in around[-1:] for it in ast.walk(function))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            texts.setdefault(node.targets[0].id, set()).add(_words(node.value, {}))
    return {name: " / ".join(sorted(values)) for name, values in texts.items()}


def _words(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value or "")
    if isinstance(node, ast.JoinedStr):
        return "".join(_words(it, names) for it in node.values)
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (_words(node.body, names), _words(node.orelse, names))))
    if isinstance(node, ast.FormattedValue):
        return _words(node.value, names) if isinstance(node.value, ast.IfExp | ast.Constant) else "…"
    if isinstance(node, ast.Name) and names.get(node.id):
        return names[node.id]
    return "…"


def as_written(_: Any, kind: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Turn a docstring of this code into what Sphinx reads: what is Python in it, is shown as such."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    for at, paragraph in enumerate(paragraphs):
        try:
            is_code = bool(re.search(r"[\n(=]", paragraph)) and bool(
                compile(paragraph, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST).body
            )
        except SyntaxError:
            is_code = False
        if is_code:
            paragraphs[at] = ".. code-block:: python\n\n" + "\n".join(f"   {it}" for it in paragraph.splitlines())
        else:
            paragraphs[at] = re.sub(r"(?<!`)\*", r"\\*", paragraph)
    lines[:] = "\n\n".join(paragraphs).splitlines()


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    app.add_directive("all-commands", CommandPages)
    app.add_directive("error-lines", ErrorLines)
    app.connect("autodoc-process-docstring", as_written)
    return {"parallel_read_safe": True}
