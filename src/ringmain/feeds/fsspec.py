r"""`tcp://` and `tcps://` for everything that opens URLs by fsspec; nothing to import once it is installed.

pip install 'ringmain[fsspec]'

with fsspec.open("tcp://127.0.0.1:8000", "rb") as file:  # the same as ringmain.open
    ...
pandas.read_csv("tcps://example.org:4000", storage_options={"cafile": "ca.pem"})
dask.bag.read_text("tcp://127.0.0.1:8000").map(json.loads)

Opening dials, and with `listen=True` waits for one client. What is read is copied once, from the block to the reader.
A connection is a stream of bytes in one direction: it has no size, cannot be listed or sought in, and what was read
once does not come again; opening the URL a second time is another connection. What needs any of that (Parquet,
`blocksize` in dask, `cat_file` with a range) is told so by io.UnsupportedOperation.
"""

import io
import posixpath
from typing import Any, ClassVar, NoReturn

from ringmain import file
from ringmain.feeds._extra import missing

try:
    from fsspec.spec import AbstractFileSystem
except ImportError as error:
    raise missing(error, "fsspec") from None

_FSSPEC_KEYWORDS = (
    "block_size",
    "autocommit",
    "cache_options",
    "cache_type",
    "size",
    "fo",
    "target_protocol",
    "target_options",
)


class TcpFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Endpoints as files; the storage options are the keywords of `ringmain.open`, as `listen` or `cafile`.

    But for `block_size`: fsspec has one of its own, which does not matter here.
    """

    protocol: ClassVar[str] = "tcp"
    root_marker = ""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(part) for part in path]
        return str(path).removeprefix(f"{cls.protocol}://").rstrip("/")

    @classmethod
    def _parent(cls, path: str) -> str:  # noqa: ARG003
        return ""

    @property
    def fsid(self) -> str:
        """The kind of file system; every endpoint is of the one."""
        return self.protocol

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Tell what can be told without dialling: an endpoint is a file of unknown size."""
        return {"name": self._strip_protocol(path), "size": None, "type": "file"}

    def exists(self, path: str, **_: Any) -> NoReturn:
        """Refuse: only opening can tell."""
        _refuse(f"whether {path} answers is known by opening it")

    def ls(self, path: str, detail: bool = True, **_: Any) -> NoReturn:  # noqa: ARG002
        """Refuse: there is nothing to list."""
        _refuse("endpoints cannot be listed: name one as tcp://HOST:PORT")

    def walk(self, path: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse as `ls`, whose refusal fsspec's own `walk` and `find` would pass over."""
        self.ls(path)

    find = walk

    def glob(self, path: str, *_: Any, **__: Any) -> list[str]:
        """Return the endpoint alone; the brackets of an IPv6 address are no pattern."""
        if "*" in path or "?" in path:
            self.ls(path)
        return [self._strip_protocol(path)]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return all that one connection brings."""
        if start is not None or end is not None:
            _refuse("a connection has no ranges: read it from beginning to end")
        with self._open(path) as file:
            return bytes(file.read())

    def read_block(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a part would have to be sought."""
        _refuse("a connection has no ranges: read it from beginning to end (dask: blocksize=None)")

    def size(self, path: str) -> NoReturn:
        """Refuse: it ends when the peer ends it."""
        _refuse(f"{path} has no size: read it from beginning to end (dask: blocksize=None)")

    def ukey(self, path: str) -> NoReturn:
        """Refuse: what comes next time may be anything."""
        _refuse(f"{path} cannot be told from what it was before")

    def _open(self, path: str, mode: str = "rb", *_: Any, **options: Any) -> file.Reader | file.Writer:
        """Return the connection as a file. Of fsspec's own keywords none matters here."""
        chosen = {**self.storage_options, **options}
        where = self._strip_protocol(path)
        if "fo" in chosen and where.startswith("["):
            # fsspec takes the :: of an IPv6 address for the link of a chain, and what is behind it for a local file.
            where = f"{where}::{posixpath.basename(chosen['fo'].rstrip('/'))}"
        url = f"{self.protocol}://{where}"
        ours = {name: value for name, value in chosen.items() if name not in _FSSPEC_KEYWORDS}
        opened: file.Reader | file.Writer = file.open(url, mode, **ours)  # type: ignore[call-overload]
        return opened


class TlsFileSystem(TcpFileSystem):
    """The same over TLS."""

    protocol: ClassVar[str] = "tcps"


def _refuse(why: str) -> NoReturn:
    raise io.UnsupportedOperation(why)
