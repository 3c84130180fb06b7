"""Fixtures, and what every test is held to: no descriptor leaked, no block lent, no process left."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
import pytest
import trustme
import uvloop

from ringmain._ring import Ring


class Certificates(NamedTuple):
    ca: Path
    server: Path
    client: Path
    stranger: Path
    stranger_ca: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")

    def write(authority: trustme.CA, name: str, *hosts: str) -> Path:
        path = folder / name
        authority.issue_cert(*hosts).private_key_and_cert_chain_pem.write_to_path(str(path))
        path.chmod(0o600)
        return path

    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "stranger_ca.pem"))
    return Certificates(
        folder / "ca.pem",
        write(authority, "server.pem", "localhost", "127.0.0.1", "::1"),
        write(authority, "client.pem", "client@example.org"),
        write(other, "stranger.pem", "localhost", "127.0.0.1"),
        folder / "stranger_ca.pem",
    )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[peers.Bench]:
    with peers.bench(tmp_path) as it:
        yield it


@pytest.fixture(scope="session", autouse=True)
def first_loop() -> None:
    """Run a loop once: libuv keeps a pipe for signals from the first one on, which is no leak."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    gc.collect()
    before = set(Path("/proc/self/fd").iterdir())
    yield
    gc.collect()
    after = set(Path("/proc/self/fd").iterdir())
    assert len(after) <= len(before), f"descriptors leaked: {after - before}"


def lent_blocks() -> int:
    """Return how many blocks of all the rings there are have views that live."""
    gc.collect()
    return sum(it.lent for it in gc.get_objects() if isinstance(it, Ring))


@pytest.fixture(autouse=True)
def no_blocks_lent() -> Iterator[None]:
    before = lent_blocks()
    yield
    after = lent_blocks()
    assert after <= before, f"{after - before} blocks are still lent"


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on uvloop; fail if the loop's exception handler was called."""

    def run_it(coroutine: Coroutine[Any, Any, Any]) -> Any:
        complaints: list[dict[str, Any]] = []

        async def watched() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(60):
                return await coroutine

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(watched())
        assert not complaints
        return result

    return run_it
