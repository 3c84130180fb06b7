"""CPython's own cases for `socket.makefile`, run on the files of `ringmain.open`. Only the fixture differs.

Cases that do not apply have no socket beside the file to be about: `ringmain.open` is the only handle. They are named
below with the reason. Debian and others keep the `test` package apart; without it these are skipped.

Of fsspec's generic cases (fsspec.tests.abstract) none applies: all write files, list them, or create them exclusively,
and read them again, which an endpoint cannot. anyio's are about its `SocketStream`, sending and receiving by one object
that a task may close under another; a loader only receives and a saver only sends, and a pair of them glued together
would test the glue.
"""

import importlib
import io
import threading
import unittest
import warnings
from typing import Any

import pytest

import ringmain

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases: Any = importlib.import_module("test.test_socket")
except ImportError:
    pytest.skip("this interpreter comes without its own tests", allow_module_level=True)

NOT_APPLICABLE = {
    "testReadAfterTimeout": "sets the socket's time-out between reads; ours is given at open (idle_timeout)",
    "testCloseAfterMakefile": "closes the socket under the file",
    "testMakefileAfterMakefileClose": "reads from the socket after the file",
    "testMakefileClose": "closes the socket under the file",
    "testMakefileCloseSocketDestroy": "counts references to the socket",
    "testAttributes": "compares the name of the file with the socket's descriptor",
    "testRealClose": "closes the socket after the file",
    "testUnbufferedReadline": "makes a second file on the same socket",
    "testSmallReadNonBlocking": "makes the socket non-blocking",
    "testWriteNonBlocking": "makes the socket non-blocking",
}


class OnRingmain:
    """The fixture: both files are ringmain's, in two threads as there."""

    bufsize: int
    read_mode: str
    write_mode: str

    def setUp(self) -> None:
        self.evt1, self.evt2, self.serv_finished, self.cli_finished = (threading.Event() for _ in range(4))
        listening = ringmain.open("tcp://127.0.0.1:0", "rb", listen=True, **self._buffering())
        self.port = listening.port
        self.read_file = self._as_asked(listening, self.read_mode)

    def tearDown(self) -> None:
        self.serv_finished.set()
        self.read_file.close()
        assert self.read_file.closed

    def clientSetUp(self) -> None:  # noqa: N802
        dialled = ringmain.open(f"tcp://127.0.0.1:{self.port}", "wb", **self._buffering())
        self.write_file = self._as_asked(dialled, self.write_mode)

    def clientTearDown(self) -> None:  # noqa: N802
        self.cli_finished.set()
        try:
            self.write_file.close()
            assert self.write_file.closed
        finally:
            cases.ThreadableTest.clientTearDown(self)

    def _buffering(self) -> dict[str, Any]:
        return {"buffer_size": self.bufsize} if self.bufsize > 0 else {}

    def _as_asked(self, file: Any, mode: str) -> Any:
        if "b" not in mode:
            return io.TextIOWrapper(file, encoding="utf-8", errors="strict", newline="")
        return file.detach() if self.bufsize == 0 else file


def on_ringmain(name: str) -> type[unittest.TestCase]:
    """Return CPython's class with our fixture and without the cases that do not apply."""
    return type(name, (OnRingmain, getattr(cases, name)), dict.fromkeys(NOT_APPLICABLE))


TestBuffered = on_ringmain("FileObjectClassTestCase")
TestSmallBuffer = on_ringmain("SmallBufferedFileObjectClassTestCase")
TestLineBuffered = on_ringmain("LineBufferedFileObjectClassTestCase")
TestUnbuffered = on_ringmain("UnbufferedFileObjectClassTestCase")
TestUnicodeRead = on_ringmain("UnicodeReadFileObjectClassTestCase")
TestUnicodeWrite = on_ringmain("UnicodeWriteFileObjectClassTestCase")
TestUnicodeReadWrite = on_ringmain("UnicodeReadWriteFileObjectClassTestCase")
