"""How what comes is received and handed out as blocks: their sizes, where records end, how long a byte may wait."""

from typing import TYPE_CHECKING, NamedTuple

from ringmain._cutter import Cutter
from ringmain._delimiter import Delimiter
from ringmain._frames import Frames
from ringmain._ring import Ring
from ringmain.errors import BlocksHeldError, UsageError
from ringmain.settings import (
    BLOCK_SIZE,
    DELIMITER,
    FRAMINGS,
    LINGER,
    LONG_RECORDS,
    MAX_RECORD,
    MERGED_RECORD,
    RING_SIZE,
    SMALL_BLOCK,
    check_kind,
    check_linger,
)

if TYPE_CHECKING:
    import asyncio

# The framings that are a delimiter by another name.
_DELIMITERS = {"nul": b"\0", "crlf": b"\r\n"}
# A consumer that holds every block may still be giving one back from another thread; this long it may take.
_HELD_TIMEOUT = 5.0


class Flow(NamedTuple):
    """How what comes is received and handed out."""

    ring: Ring
    linger: float
    min_block: int
    copy: bool
    cutter: Cutter | None = None  # tells where records end, also where streams are merged, whose ring cuts nothing
    # Where they are: what the last record of a stream is completed with, unless its size stands in front, and whether
    # one that is too long is left out.
    terminator: bytes = b""
    skips: bool = False
    delimiter: bytes = b""


def plain_flow(linger: float, *, small: bool) -> Flow:
    """Return how bytes are received that are cut nowhere; `small` is for one of many connections."""
    check_linger(linger)
    ring_size, block_size = (4 * SMALL_BLOCK, SMALL_BLOCK) if small else (RING_SIZE, BLOCK_SIZE)
    return Flow(Ring(ring_size, block_size), linger, 1, copy=False)


def flow_for(
    *,
    delimiter: bytes = b"",
    framing: str | None = None,
    ring_size: int | None = None,
    block_size: int = BLOCK_SIZE,
    max_record: int | None = None,
    linger: float = LINGER,
    long_records: str = LONG_RECORDS,
    min_block: int = 1,
    copy: bool = False,
    merges: bool = False,
    small: bool = False,
) -> Flow:
    """Return what the keywords of `ringmain.load` ask for; raise UsageError.

    merges: for a ring that many connections share. small: for one of many rings, unless sizes are given.
    """
    for name, value in (("block_size", block_size), ("min_block", min_block)):
        check_kind(name, value, int)
    for name, size in (("ring_size", ring_size), ("max_record", max_record)):
        check_kind(name, size, int, or_none=True)
    check_kind("copy", copy, bool)
    check_linger(linger)
    if merges and not delimiter and framing is None:
        delimiter = DELIMITER
    if max_record is None:
        max_record = MERGED_RECORD if merges or small else MAX_RECORD
    if small and ring_size is None:
        block_size = min(block_size, SMALL_BLOCK)
        ring_size = 4 * block_size
    if min_block > 1:
        block_size = max(block_size, min_block * 4 // 3 + 4)  # a block is full when a quarter of it is left
    _check_sizes(block_size, ring_size, min_block, linger)
    if framing is not None:
        _check_framing(framing, delimiter)
        delimiter = _DELIMITERS.get(framing, b"")
    cutter = cutter_for(delimiter, framing)
    _check_records(cutter, max_record, long_records)
    room = ring_size or max(RING_SIZE, 8 * block_size)
    if merges:
        ring = Ring(room, block_size, b"", max_record)
        terminator = DELIMITER if framing == "octet-counting" else delimiter
        return Flow(ring, linger, min_block, copy, cutter, terminator, long_records == "skip", delimiter)
    ring = Ring(room, block_size, delimiter, max_record, long_records == "skip", cutter)
    return Flow(ring, linger, min_block, copy, cutter, delimiter=delimiter)


def cutter_for(delimiter: bytes, framing: str | None = None) -> Cutter | None:
    """Return what tells where records end, None where there are none; raise UsageError."""
    check_kind("delimiter", delimiter, bytes)
    if len(delimiter) > 16:
        raise UsageError("delimiter=", f"{len(delimiter)} bytes long", "give 1 to 16 bytes")
    if delimiter:
        return Delimiter(delimiter)
    if framing is None:
        return None
    if framing == "octet-counting":
        return Frames()
    width, order = framing.removeprefix("length:")[:1], framing[-2:]
    return Frames(int(width), order == "le")


async def until_given_back(ring: Ring, waiter: "asyncio.Future[None]") -> None:
    """Wait for a ring whose consumer holds all its blocks; raise BlocksHeldError."""
    import asyncio

    try:
        await asyncio.wait([waiter], timeout=_HELD_TIMEOUT)  # whose time-out is no exception that would be told of too
    finally:
        held = waiter.cancel()
    if held:
        remedy = "release or copy blocks, or raise ring_size="
        raise BlocksHeldError(f"the ring's {ring.block_count} blocks", "too many are still held", remedy)


def _check_sizes(block_size: int, ring_size: int | None, min_block: int, linger: float) -> None:
    if block_size < 1:
        raise UsageError(f"block_size={block_size}", "it holds nothing", "give at least 1")
    if ring_size is not None and ring_size < 4 * block_size:
        raise UsageError(
            f"ring_size={ring_size}", f"less than four blocks of {block_size} bytes", "raise it, or lower block_size"
        )
    if min_block > 1 and linger <= 0:
        raise UsageError(f"min_block={min_block}", "bytes wait for more only with linger=", "give linger= in seconds")


def _check_framing(framing: str, delimiter: bytes) -> None:
    if delimiter:
        raise UsageError("framing= with delimiter=", "both say where records end", "leave one of them out")
    if framing not in FRAMINGS:
        raise UsageError(f"framing={framing!r}", "not known", f"choose one of {', '.join(FRAMINGS)}")


def _check_records(cutter: Cutter | None, max_record: int, long_records: str) -> None:
    least = cutter.least if cutter is not None else 1
    if max_record < least:
        raise UsageError(f"max_record={max_record}", "every record is longer", f"give at least {least}")
    if long_records not in ("raise", "skip"):
        raise UsageError(f"long_records={long_records!r}", "not known", "choose one of raise, skip")
    if long_records == "skip" and cutter is None:
        raise UsageError(
            "long_records=", "without a delimiter or framing there are no records", "give delimiter= or framing="
        )
