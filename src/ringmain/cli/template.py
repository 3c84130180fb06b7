"""The name of an output of `ringmain load`, in which {peer}, %Y and others stand for what differs."""

import re
import time

from ringmain.errors import UsageError

# What stands for a connection's own, and for the number of a process of `--processes`.
_FIELDS = ("peer", "number", "process")
# What strftime makes of a letter where it is a part of a name: no slash, no space.
_TIMES = frozenset("aAbBCdFgGhHIjmMpRsSTuUVwWyYzZ")
_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|%.?", re.DOTALL)
_LONGEST_PEER = 100


class Template:
    """The name of a file, in whose last part {peer} and {number} stand for those of a connection, {{ and }} for braces.

    {process} stands for a process's, %Y and the like (strftime) for the time at which `name` is called, %% for a %.
    `varies` tells whether connections differ, `parts` whether processes do.
    """

    def __init__(self, text: str, option: str) -> None:
        """Raise UsageError for another word in braces, or another letter behind a %."""
        self.folder, slash, self._name = text.rpartition("/")
        self.folder += slash
        self.option = option
        if any(f"{{{field}}}" in self.folder for field in _FIELDS):
            raise UsageError(f"{option} {text}", "a folder's name has a placeholder", "put it into the file's name")
        tokens = set(_TOKEN.findall(self._name)) - {"{{", "}}", "%%"}
        if unknown := {token for token in tokens if token[0] == "%" and token[1:] not in _TIMES}:
            remedy = "choose a code of strftime, as in %Y-%m-%d, or write %% for a percent sign"
            raise UsageError(f"{option} {text}", f"the time code {min(unknown)} is not known", remedy)
        words = {token[1:-1] for token in tokens if token[0] == "{"}
        if unknown := words.difference(_FIELDS):
            remedy = "choose {peer}, {number} or {process}, or write {{ and }} for braces"
            raise UsageError(f"{option} {text}", f"the placeholder {{{min(unknown)}}} is not known", remedy)
        self.varies = bool(words - {"process"})
        self.parts = "process" in words

    def name(self, peer: str = "", number: int = 0, process: int = 1) -> str:
        """Return the name of the file of a connection, or of a process, at this time of the local clock."""
        values = {"{{": "{", "}}": "}", "%%": "%", "{peer}": file_name_of(peer), "{number}": str(number)}
        values["{process}"] = str(process)
        now = time.localtime()
        return self.folder + _TOKEN.sub(lambda it: values.get(it[0]) or time.strftime(it[0], now), self._name)


def file_name_of(peer: str) -> str:
    """Return the address and port of a peer as a part of a file's name, whatever they are.

    Letters, digits and `.-_%` stay, brackets are left out, and what else there is becomes `_`.
    """
    name = re.sub(r"[^A-Za-z0-9._%-]", "_", re.sub(r"[\[\]]", "", peer))
    return name.lstrip(".-")[:_LONGEST_PEER] or "unknown"
