"""What Arrow makes of one block: NDJSON or CSV into record batches, and which record it stumbles over."""

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from ringmain.feeds._feed import Failed, Piece, line_ends

if TYPE_CHECKING:
    from collections.abc import Callable


class Job(NamedTuple):
    """Whole records, to be parsed by any thread; `offset` bytes of the stream lie before them.

    It knows nothing of the stream, which a thread that is still at work must not keep open.
    """

    data: memoryview
    offset: int
    names: list[str] | None = None  # of the columns, or None where the first record has them


class Outcome(NamedTuple):
    """The batches of a job up to its first bad record, and what is wrong with that."""

    batches: "list[pa.RecordBatch]"
    failed: Failed | None


class Parser(Protocol):
    """How a format is read. All but `run` is called by the consumer's thread."""

    schema: "pa.Schema | None"

    @property
    def ready(self) -> bool:
        """Whether the next job may be run before the one before it is done, which tells what its columns are."""

    def admit(self, piece: Piece) -> Job | None:
        """Return what is to be parsed now that a piece came, in order."""

    def run(self, job: Job) -> Outcome:
        """Parse in any thread."""


class Ndjson:
    """A JSON object a line."""

    def __init__(self, schema: "pa.Schema | None", unexpected_fields: str) -> None:
        import pyarrow.json

        self._json = pyarrow.json
        self.schema = schema
        self._given = schema is not None
        self._unexpected_fields = unexpected_fields

    @property
    def ready(self) -> bool:
        return self.schema is not None

    def admit(self, piece: Piece) -> Job | None:
        return Job(piece.block, piece.offset) if piece.block else None

    def run(self, job: Job) -> Outcome:
        return _run(job, line_ends, self._parse, self._given)

    def _parse(self, job: Job) -> "pa.Table":
        schema = self.schema
        return self._json.read_json(
            pa.BufferReader(pa.py_buffer(job.data)),
            read_options=self._json.ReadOptions(use_threads=False, block_size=len(job.data) + 1),
            parse_options=self._json.ParseOptions(
                explicit_schema=schema,
                unexpected_field_behavior="infer" if schema is None else self._unexpected_fields,
            ),
        )


class Csv:
    """Rows; the first of each connection names the columns, unless the schema does."""

    def __init__(
        self, schema: "pa.Schema | None", header: bool, parse_options: Any, convert_options: Any, max_record: int
    ) -> None:
        import pyarrow.csv

        self._csv = pyarrow.csv
        self.schema = schema
        self._given = schema is not None
        self._header = header
        self._parse_options = parse_options or pyarrow.csv.ParseOptions()
        self._convert_options = convert_options or pyarrow.csv.ConvertOptions()
        self._quote = str(self._parse_options.quote_char or "").encode()
        self._max_record = max_record
        self._names: list[str] | None = None
        self._carried = b""

    @property
    def ready(self) -> bool:
        return self.schema is not None and self._names is not None

    def admit(self, piece: Piece) -> Job | None:
        if piece.offset == 0:  # what the connection before left may have been given up
            self._names, self._carried = None, b""
        if not self._header and self.schema is not None:
            self._names = self.schema.names
        data, offset = piece.block, piece.offset - len(self._carried)
        if self._carried:
            data, self._carried = memoryview(self._carried + data), b""
        if piece.block and self._cut_in_quotes(data) and len(data) < self._max_record:
            self._carried = bytes(data)
            return None
        return Job(data, offset, self._names) if data else None

    def run(self, job: Job) -> Outcome:
        if job.names is None:
            self._names = self._names_of(job.data)
        return _run(job, self._record_ends, self._parse, self._given)

    def _parse(self, job: Job) -> "pa.Table":
        convert, schema = self._convert_options, self.schema
        if schema is not None:
            convert = copy.copy(convert)
            convert.column_types, convert.include_columns = schema, schema.names
        return self._csv.read_csv(
            pa.BufferReader(pa.py_buffer(job.data)),
            read_options=self._csv.ReadOptions(use_threads=False, block_size=len(job.data) + 1, column_names=job.names),
            parse_options=self._parse_options,
            convert_options=convert,
        )

    def _cut_in_quotes(self, data: memoryview) -> bool:
        """Tell whether a quoted field goes on behind the data: it has an odd number of quotes."""
        return bool(self._quote) and bytes(data).count(self._quote) % 2 == 1

    def _names_of(self, data: memoryview) -> list[str] | None:
        """Return the names in the first record, or None where it cannot be read; who parses it will say why."""
        for end in self._record_ends(data):
            with contextlib.suppress(pa.ArrowException):
                header = pa.BufferReader(pa.py_buffer(data[:end]))
                return list(self._csv.read_csv(header, parse_options=self._parse_options).column_names)
        return None

    def _record_ends(self, data: memoryview) -> Iterator[int]:
        """Return the offset behind each record, which may hold newlines in quotes."""
        quotes = start = 0
        for end in line_ends(data):
            quotes += bytes(data[start:end]).count(self._quote) if self._quote else 0
            start = end
            if quotes % 2 == 0 or end == len(data):
                yield end


def _run(
    job: Job, ends_of: "Callable[[memoryview], Iterator[int]]", parse: "Callable[[Job], pa.Table]", given: bool
) -> Outcome:
    """Parse a job; where that fails, all before its first bad record."""
    cause: Exception | None = None
    try:
        return Outcome(_batches(parse(job)), None)
    except pa.ArrowException as error:
        cause = error
    ends = [0, *ends_of(job.data)]
    good, bad = 0, len(ends) - 1  # so many records parse, so many do not
    batches: list[pa.RecordBatch] = []
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            batches = _batches(parse(job._replace(data=job.data[: ends[middle]])))
            good = middle
        except pa.ArrowException as error:
            cause, bad = error, middle
    whole = job.data[ends[bad] - 1] == ord("\n")
    why = re.sub(r" in row \d+|Row #\d+: ", "", str(cause))  # rows of this block, which nobody else can count
    narrow = not given and re.search("changed from|onver|unexpected field", why)
    remedy = "the schema is the first block's: give a wider one with schema=" if narrow else ""
    return Outcome(batches, Failed(job.offset + ends[good], whole, cause, why, remedy))


def _batches(table: "pa.Table") -> "list[pa.RecordBatch]":
    return [batch for batch in table.to_batches() if batch.num_rows]
