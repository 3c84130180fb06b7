"""What the tests of the feeds share: their libraries, and a peer that sends."""

import gc
import importlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

import peers
import pytest

import ringmain


def library(name: str) -> Any:
    """Return a library that a feed needs; without it skip the module, or under CI fail."""
    known = name in sys.modules
    try:
        module = importlib.import_module(name)
        if not known:
            gc.freeze()  # every test has the collector run twice, which need not walk all of Pandas each time
        return module
    except ImportError:
        without = Path(sys.prefix, "testing-without.txt")  # what `make test` found no wheel of, for this Python
        if os.environ.get("CI") == "true" and not (without.exists() and name in without.read_text().split()):
            raise
        pytest.skip(f"{name} is not installed; `make test` installs it", allow_module_level=True)


def send(port: int, *parts: bytes, reset: bool = False) -> threading.Thread:
    """Send each part over a connection of its own, one after another; the last ends in a reset if asked to."""

    def work() -> None:
        for part in parts:
            sock = peers.connect(port)
            try:
                sock.sendall(part)
            except OSError:  # left by who had enough of it
                sock.close()
                continue
            if reset and part is parts[-1]:
                peers.close_with_reset(sock)
            sock.close()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def all_given_back(loader: ringmain.Loader) -> None:
    """Wait until no thread of a feed that was left holds a block any more."""
    peers.eventually(lambda: loader.ring.lent == 0, "all blocks given back")


def numbered(count: int, start: int = 0) -> bytes:
    """Return lines of JSON that differ."""
    return b"".join(b'{"a":%d,"b":"text %d","c":[%d,null]}\n' % (n, n * n, n % 7) for n in range(start, start + count))
