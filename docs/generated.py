"""What the documentation takes from the code: the command line, the error lines, and docstrings."""

import ast
import io
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import ringmain.feeds
import ringmain.testing
from ringmain import errors
from ringmain.settings import TlsSettings

SOURCE = Path(ringmain.__file__).parent
# A keyword in a docstring, its default, and what it is, which may go on in further lines that are indented.
_KEYWORD = re.compile(r"^(\w+) \((.+?)\): (.*(?:\n +.*)*)$", re.MULTILINE)


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


class PublicNames(_Markdown):
    """What ringmain, its feeds and ringmain.testing offer: of the kind that the argument names."""

    def lines(self) -> Iterator[str]:
        """Yield its lines."""
        yield from ["```{eval-rst}", *public_names()[self.arguments[0]], "```"]


def public_names() -> dict[str, list[str]]:
    """Return the directives of autodoc for all public names, by their kind."""
    names: dict[str, list[str]] = {
        "functions": [],
        "keywords": [],
        "classes": [],
        "feeds": [],
        "testing": [],
        "errors": [],
    }
    for name in ringmain.__all__:
        it = getattr(ringmain, name)
        if not isinstance(it, type):
            names["functions"].append(f".. autofunction:: ringmain.{name}")
        elif issubclass(it, errors.RingmainError):
            names["errors"].append(f".. autoclass:: ringmain.{name}\n")
        elif issubclass(it, dict | TlsSettings):
            names["keywords"] += [f".. autoclass:: ringmain.{name}", "   :no-members:", ""]
        elif issubclass(it, io.IOBase):
            names["classes"] += [f".. autoclass:: ringmain.{name}", "   :no-members:", ""]
        else:
            names["classes"] += [f".. autoclass:: ringmain.{name}", "   :inherited-members:", ""]
    for module in pkgutil.iter_modules(ringmain.feeds.__path__):
        if not module.name.startswith("_"):
            names["feeds"].append(f".. automodule:: ringmain.feeds.{module.name}")
    names["testing"] = [f".. autoclass:: ringmain.testing.{name}" for name in ringmain.testing.__all__]
    return names


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
    # A list of keywords may follow its sentence at once.
    text = re.sub(
        r"^(?! )(.*)\n(?=\w+ \(.+?\): )",
        lambda it: it[0] if _KEYWORD.match(it[1]) else f"{it[1]}\n\n",
        "\n".join(lines),
        flags=re.MULTILINE,
    )
    paragraphs = re.split(r"\n\s*\n", text)
    for at, paragraph in enumerate(paragraphs):
        try:
            is_code = bool(re.search(r"[\n(=]", paragraph)) and bool(
                compile(paragraph, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST).body
            )
        except SyntaxError:
            is_code = False
        if _KEYWORD.match(paragraph):  # a list of keywords, each with its default
            paragraphs[at] = "\n".join(
                f"``{match[1]}`` ({_unmarked(match[2])})\n   {_unmarked(' '.join(match[3].split()))}"
                for match in _KEYWORD.finditer(paragraph)
            )
        elif is_code:
            paragraphs[at] = ".. code-block:: python\n\n" + "\n".join(f"   {it}" for it in paragraph.splitlines())
        else:
            paragraphs[at] = _unmarked(paragraph)
    lines[:] = "\n\n".join(paragraphs).splitlines()


def _unmarked(text: str) -> str:
    """Return text of a docstring that has no markup but backticks; what stands in those is left as it is."""
    pieces = re.split("(`[^`]*`)", text)
    return "".join(it if it[:1] == "`" else re.sub(r"([\\*])", r"\\\1", it) for it in pieces)


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    app.add_directive("all-commands", CommandPages)
    app.add_directive("error-lines", ErrorLines)
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-docstring", as_written)
    return {"parallel_read_safe": True}
