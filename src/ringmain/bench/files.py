"""Files that a run writes at its end: whether that can be done is found out before."""

from pathlib import Path

from ringmain.errors import OutputError, reason


def try_to_write(path: str, option: str) -> None:
    """Raise OutputError if a file cannot be written; one that is there stays as it is, and none is left behind."""
    file = Path(path)
    try:
        new = not file.exists()
        with file.open("a"):
            pass
        if new:
            file.unlink()
    except OSError as error:
        raise OutputError(f"write {path}", reason(error), f"choose another {option}") from error


def write(path: str, text: str, option: str) -> None:
    """Write a file; raise OutputError."""
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise OutputError(f"write {path}", reason(error), f"choose another {option}") from error
