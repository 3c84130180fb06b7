"""Arrow's IPC format from peers that nobody knows: validated, bounded, and what is refused is passed over."""

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
from feeding import library, send

import ringmain
from ringmain import errors

pa = library("pyarrow")
np = library("numpy")
arrow = library("ringmain.feeds.arrow")

STRINGS = pa.table({"s": ["abcd"]})
LIMIT = 1 << 20
MARK = b"\xff\xff\xff\xff"  # where a message begins


def stream_of(*tables: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, tables[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for table in tables:
            writer.write_table(table)
    return sink.getvalue()


def with_offset(offset: int) -> bytes:
    """Return a batch of one string, said to end at an offset of its buffer."""
    data, known = stream_of(STRINGS), struct.pack("<ii", 0, 4) + b"abcd"
    assert data.count(known) == 1
    return data.replace(known, struct.pack("<ii", 0, offset) + b"abcd")


@pytest.mark.parametrize("offset", [3000, 1 << 30, -1])
def test_a_batch_that_points_outside_of_its_memory_is_refused(offset: int) -> None:
    with ringmain.load("127.0.0.1:0") as loader:
        thread = send(loader.port, with_offset(offset), stream_of(STRINGS))
        reader = arrow.record_batches(loader, "ipc")
        with pytest.raises(errors.ParseError) as caught:
            reader.read_next_batch().to_pylist()
        assert caught.value.offset > 0
        assert reader.read_next_batch().to_pylist() == [{"s": "abcd"}]
        del caught
    thread.join()


def test_without_validation_a_batch_is_handed_out_as_it_came() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        thread = send(loader.port, with_offset(3000))
        batch = arrow.record_batches(loader, "ipc", validate=False).read_next_batch()
        with pytest.raises(pa.ArrowInvalid):
            batch.validate(full=True)
        del batch
    thread.join()


def test_a_refused_batch_is_passed_over_and_given_to_the_function() -> None:
    good, bad = stream_of(STRINGS, STRINGS), with_offset(3000)
    begin = good.index(MARK, 4)  # behind the schema
    end = good.index(MARK, begin + 4)
    bad_message = bad[begin:end]
    data = good[:end] + bad_message + good[end:]
    seen: list[tuple[int, bytes]] = []
    with ringmain.load("127.0.0.1:0", listen_once=True, block_size=64, ring_size=8192) as loader:
        thread = send(loader.port, data)
        reader = arrow.record_batches(loader, "ipc", on_error=lambda error, it: seen.append((error.offset, it)))
        assert reader.read_all().to_pylist() == [{"s": "abcd"}] * 2
    thread.join()
    assert seen == [(end, bad_message)]


NAMES = pa.schema([pa.field("abcd", pa.struct([pa.field("efgh", pa.int64())]))])
DICTIONARY = pa.table({"d": pa.array(["p", "q"]).dictionary_encode()})
LONGER = pa.table({"d": pa.array(["p", "q", "r"]).dictionary_encode()})
HOSTILE = {
    "metadata of 2 GB": MARK + struct.pack("<i", 2**31 - 1),
    "metadata of -8 bytes": MARK + struct.pack("<i", -8),
    "a decompression bomb": stream_of(pa.table({"z": np.zeros(16 << 20, np.uint8)}), compression="zstd"),
    "a name that is not UTF-8": stream_of(NAMES.empty_table()).replace(b"abcd", b"\xff\xfe\xfd\xfc"),
    "an inner name that is not UTF-8": stream_of(NAMES.empty_table()).replace(b"efgh", b"\xff\xfe\xfd\xfc"),
    "a string that is not UTF-8": stream_of(STRINGS).replace(b"abcd", b"\xff\xfe\xfd\xfc"),
    "more rows than bits": stream_of(pa.table({"n": pa.nulls((LIMIT + 1) * 8)})),
    "a part of a dictionary": stream_of(DICTIONARY, LONGER, emit_dictionary_deltas=True),
    "a batch of more bytes": stream_of(pa.table({"z": np.zeros(2 << 20, np.uint8)})),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_would_cost_more_than_max_record_or_cannot_be_checked_is_refused(kind: str) -> None:
    data = HOSTILE[kind]
    with ringmain.load("127.0.0.1:0", max_record=LIMIT) as loader, peers.connect(loader.port) as sock:
        sock.sendall(data[: 1 << 20])  # and stays: nothing that comes later is needed to refuse it
        pending = send(loader.port, stream_of(STRINGS))
        with pytest.raises(errors.ParseError):
            list(arrow.record_batches(loader, "ipc"))
        assert arrow.record_batches(loader, "ipc").read_next_batch().to_pylist() == [{"s": "abcd"}]
    pending.join()


def test_a_part_of_a_dictionary_is_taken_from_who_is_trusted() -> None:
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        thread = send(loader.port, HOSTILE["a part of a dictionary"])
        rows = arrow.record_batches(loader, "ipc", validate=False).read_all()["d"].to_pylist()
    thread.join()
    assert rows == ["p", "q", "p", "q", "r"]


def test_dictionaries_without_an_end_are_refused() -> None:
    data = stream_of(DICTIONARY)
    begin = data.index(MARK, 4)
    end = data.index(MARK, begin + 4)
    with ringmain.load("127.0.0.1:0", listen_once=True, max_record=20_000) as loader:
        thread = send(loader.port, data[:begin] + data[begin:end] * 10_000)
        with pytest.raises(errors.ParseError, match="more than 20000 bytes"):
            arrow.record_batches(loader, "ipc").read_next_batch()
    thread.join()


FUZZ = """
import random, socket, sys
import pyarrow as pa
import ringmain
from ringmain.feeds import arrow

seed, streams = int(sys.argv[1]), open(sys.argv[2], "rb").read().split(b"||||")
rnd = random.Random(seed)
NUMBERS = (0, 1, -1, 3000, 2**30, 2**31 - 1, -(2**31))
read = refused = 0


def count(*_):
    global refused
    refused += 1


with ringmain.load("127.0.0.1:0", max_record=1 << 20) as loader:
    connections = loader.connections()
    for number in range(int(sys.argv[3])):
        data = bytearray(rnd.choice(streams))
        for _ in range(rnd.choice((1, 1, 2, 5, 20))):
            at = rnd.randrange(len(data))
            if rnd.random() < 0.7:
                data[at] ^= 1 << rnd.randrange(8)
            else:
                at &= ~3
                data[at : at + 4] = rnd.choice(NUMBERS).to_bytes(4, "little", signed=True)
        with socket.create_connection(("127.0.0.1", loader.port)) as sock:
            sock.sendall(data)
        try:
            on_error = rnd.choice(("raise", count))
            for batch in arrow.record_batches(next(connections), "ipc", on_error=on_error):
                batch.to_pylist()
                read += 1
        except ringmain.ParseError:
            refused += 1
print("read", read, "refused", refused)
"""


def samples() -> list[bytes]:
    """Return streams with all kinds of columns, compressed or not."""
    count = 50
    numbers, text = pa.array(range(count)), pa.array(["x" * n for n in range(count)])
    halves = pa.array([0, 1] * (count // 2), pa.int8())
    columns = {
        "text": pa.array([None if n % 7 == 0 else "x" * n for n in range(count)]),
        "list": pa.array([["x"] * (n % 4) for n in range(count)]),
        "struct": pa.array([{"a": n, "b": "q"} for n in range(count)]),
        "dictionary": pa.array(["p", "q"] * (count // 2)).dictionary_encode(),
        "map": pa.array([[("k", n)] for n in range(count)], pa.map_(pa.string(), pa.int64())),
        "sparse": pa.UnionArray.from_sparse(halves, [numbers, text]),
        "dense": pa.UnionArray.from_dense(
            halves, pa.array([n // 2 for n in range(count)], pa.int32()), [numbers, text]
        ),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([10, count], pa.int32()), pa.array(["a", "b"])),
        "fixed": pa.array([[1, 2]] * count, pa.list_(pa.int8(), 2)),
    }
    table = pa.table(columns)
    plain = table.select(["text", "list", "struct", "dictionary", "map"])
    kinds: list[Any] = [None, "lz4", "zstd"]
    return [stream_of(it, it.slice(3, 20), compression=kind) for it in (table, plain) for kind in kinds]


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_crash_nothing(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "streams"
    path.write_bytes(b"||||".join(samples()))
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FUZZ, str(seed), str(path), "150"],
        capture_output=True,
        text=True,
        timeout=peers.TIMEOUT * 6,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("read ")
    assert not result.stdout.endswith("refused 0\n")
