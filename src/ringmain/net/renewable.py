"""How connections are protected, by files that may be read again while others shake hands."""

import os
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Self

from ringmain._libssl import not_after
from ringmain.errors import RingmainError

_TRIES = 3
# A file as it was: device, inode, size, when it was written to, which may be set back, and when anything of it was
# changed; None where there is none.
_Look = tuple[int, int, int, int, int] | None


class Renewable(ssl.SSLContext):
    """Wrap sockets by a context of its own, which `renew` puts another in the place of.

    A context is not changed but made anew: a file that is no good must leave it as it was, and authorities that were
    taken out of a file must not stay. Handshakes that go on keep theirs.
    """

    _current: ssl.SSLContext
    _make: Callable[[bool], ssl.SSLContext]
    _files: Sequence[str]
    _seen: list[_Look]

    @classmethod
    def made_by(cls, make: Callable[[bool], ssl.SSLContext], files: Sequence[str]) -> Self:
        """Return what is made of these files; raise what `make` does. It is told whether that is once more."""
        self = cls(ssl.PROTOCOL_TLS_CLIENT)
        self._make, self._files = make, files
        self._seen = self._look()  # before they are read: what changes meanwhile has changed
        self._current = make(False)
        return self

    def renew(self) -> None:
        """Read the files again, for whoever shakes hands from now on; raise what is wrong, and stay as it was.

        Others may come while they are read, as the key that belongs to the next certificate: then that is done anew.
        """
        for tries_left in range(_TRIES, 0, -1):
            self._seen = self._look()
            try:
                self._current = self._make(True)
            except RingmainError:
                if tries_left == 1 or not self.has_changed:
                    raise
            else:
                return

    @property
    def has_changed(self) -> bool:
        """Whether a name leads to another file than when these were read last, or to one that was changed since."""
        return self._look() != self._seen

    @property
    def not_after(self) -> int | None:
        """When our own certificate that is in use expires, in seconds of Unix time; None without, or if not told."""
        return not_after(self._current)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Do as the present context does."""
        return self._current.wrap_socket(*arguments, **options)

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Do as the present context does."""
        return self._current.wrap_bio(*arguments, **options)

    def _look(self) -> list[_Look]:
        return [_look_at(file) for file in self._files]


def _look_at(file: str) -> _Look:
    try:
        status = os.stat(file)  # noqa: PTH116 - follows symlinks, of folders too, as certbot and Kubernetes swap them
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
