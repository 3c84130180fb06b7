"""A saver that connects again goes on where the lost connection ended: nothing is left out, no record is torn."""

import random
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
from conftest import Certificates
from losing import Losing, check_parts, check_records, numbered

import ringmain

Run = Callable[[Any], Any]
LOSSES = 20
pytestmark = pytest.mark.usefixtures("short_pauses")


def parts_of(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield data in parts of all sizes: those that are gathered, and those that are longer than the kernel takes."""
    begin = 0
    while begin < len(data):
        size = rng.choice([10, 1000, 15_000, 100_000, 400_000])
        yield data[begin : begin + size]
        begin += size


def send_through_losses(
    run: Run, data: bytes, context: ssl.SSLContext | None, certificates: Certificates, seed: int, **options: Any
) -> list[bytes]:
    """Return what each connection of a receiver that is lost again and again got of the data."""
    receiver = Losing(LOSSES, seed, context)
    scheme, cafile = ("tcp", None) if context is None else ("tcps", str(certificates.ca))

    async def main() -> None:
        url = f"{scheme}://127.0.0.1:{receiver.port}"
        async with ringmain.save(url, cafile=cafile, reconnect=True, **options) as saver:
            for part in parts_of(data, random.Random(seed)):
                await saver.write(part)
        assert saver.try_number == 0

    try:
        run(main())
    finally:
        receiver.wait()
    assert receiver.ended_properly
    return receiver.streams


def test_each_connection_begins_at_or_before_where_the_last_one_ended(
    run: Run, context: ssl.SSLContext | None, certificates: Certificates
) -> None:
    data = peers.payload(10_000_000)
    streams = send_through_losses(run, data, context, certificates, 1)
    check_parts(streams, data)


def test_with_a_delimiter_each_connection_begins_with_a_whole_record_and_all_come(
    run: Run, context: ssl.SSLContext | None, certificates: Certificates
) -> None:
    records = numbered(12_000, 3)
    streams = send_through_losses(
        run, b"".join(it + b"\r\n" for it in records), context, certificates, 3, delimiter=b"\r\n"
    )
    check_records(streams, records, b"\r\n")
