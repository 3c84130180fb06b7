"""Files that a run writes at its end: whether that can be done is found out before."""

import contextlib
import os
import secrets
import signal
import stat
import tempfile
from pathlib import Path

from ringmain.errors import OutputError, reason

_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}


def try_to_write(path: str, option: str) -> None:
    """Raise OutputError if a file cannot be written. Nothing at its place, and no other name, changes by that."""
    file = Path(path)
    try:
        if _is_replaced(file):
            file = file.resolve()
            if file.exists():
                os.close(os.open(file, os.O_WRONLY | os.O_CLOEXEC))
            with tempfile.TemporaryFile(dir=file.parent):  # has no name, or not for longer than a system call
                pass
        elif file.is_dir() or not os.access(file, os.W_OK):
            file.open("a").close()  # raises the reason
    except OSError as error:
        raise OutputError(f"write {path}", reason(error), f"choose another {option}") from error


def write(path: str, text: str, option: str) -> None:
    """Write a file, which is there whole or not at all, or else a pipe or device; raise OutputError."""
    file = Path(path)
    try:
        if _is_replaced(file):
            _replace(file.resolve(), text.encode())
        else:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"write {path}", reason(error), f"choose another {option}") from error


def _is_replaced(file: Path) -> bool:
    """Tell whether a file is a regular one, or not there yet, and no other name of what is open already."""
    if str(file.absolute()).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        return False
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        return True


def _replace(file: Path, data: bytes) -> None:
    """Let another file take the place of a regular one, or of none. A signal waits: it would leave the other behind."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    other = file.with_name(f".ringmain-{secrets.token_hex(8)}")
    try:
        with other.open("xb") as output:
            try:
                output.write(data)
                output.flush()
                with contextlib.suppress(FileNotFoundError):
                    _look_like(output.fileno(), file.stat())
                other.replace(file)
            except BaseException:
                other.unlink()
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _look_like(fd: int, was: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):  # not ours: a superuser leaves a file its owner
        os.fchown(fd, was.st_uid, was.st_gid)
    os.fchmod(fd, stat.S_IMODE(was.st_mode))
