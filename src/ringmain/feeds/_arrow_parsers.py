"""What Arrow makes of one block: NDJSON or CSV into record batches, and which records it refuses."""

import copy
import re
import secrets
from typing import Any, Protocol

import pyarrow as pa

from ringmain._json import fields_of, split_value
from ringmain._records import CsvRecords, line_ends
from ringmain.feeds._arrow_search import Job, Outcome, Search
from ringmain.feeds._feed import Piece, broke
from ringmain.feeds._refusal import Bad

MARK = b"\xef\xbb\xbf"  # of UTF-8, at the beginning of a stream; Arrow leaves it out at that of each block

# Arrow builds types by recursion, and crashes where they are nested too deeply; this is its own limit for IPC.
DEEPEST = 64

# A column costs some KiB in whatever is made of it, were it empty: no stranger's header or first record may ask for any
# number. As many as the columns of a spreadsheet; those of a schema may be more.
MOST_COLUMNS = 16_384
LEAST_CELLS = 1 << 22

SEED = secrets.randbits(64)


class Parser(Protocol):
    """How a format is read. All but `run` is called by the consumer's thread."""

    schema: "pa.Schema | None"

    @property
    def ready(self) -> bool:
        """Whether the next job may be run before the one before it is done, which tells what its columns are."""

    def admit(self, piece: Piece) -> Job | Bad | None:
        """Return what is to be parsed now that a piece came, in order."""

    def run(self, job: Job, most: int) -> Outcome:
        """Parse in any thread, up to so many bad records."""


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

    def admit(self, piece: Piece) -> Job | Bad | None:
        return Job(piece.block, piece.offset) if piece.block else None

    def run(self, job: Job, most: int) -> Outcome:
        return Search(job, self.schema, self._given, self._parse, line_ends, most).outcome()

    def _parse(self, job: Job, schema: "pa.Schema | None") -> "pa.Table":
        data = job.data[len(MARK) :] if job.offset == 0 and job.data[: len(MARK)] == MARK else job.data
        if split_value(data, objects=True, depth=DEEPEST if schema is None else 0) >= 0:
            levels = f" of {DEEPEST} levels at most" if schema is None else ""
            raise pa.ArrowInvalid(f"the line is not a whole JSON object{levels}")
        if schema is None:
            _check_fields(data)
        table = self._json.read_json(
            pa.BufferReader(pa.py_buffer(data)),
            read_options=self._json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=self._json.ParseOptions(
                explicit_schema=schema,
                unexpected_field_behavior="infer" if schema is None else self._unexpected_fields,
            ),
        )
        table.validate(full=True)  # that strings are UTF-8, which the parser does not look at
        _ = table.column_names  # and names too
        return table


def _check_fields(data: memoryview) -> None:
    """Refuse what would cost far more memory than it has: a column has a cell in each row, there or not."""
    rows = len(line_ends(data))
    most = min(MOST_COLUMNS, max(LEAST_CELLS, 8 * len(data)) // max(1, rows))
    if fields_of(data, SEED, most) > most:
        raise pa.ArrowInvalid(f"{rows} records have more than {most} different fields; give a schema")


class Csv:
    """Rows; the first of each connection names the columns, unless the schema does.

    Where streams are `merged` nobody tells where one ends or begins: there is no header, and no row goes on behind the
    end of its line, for what comes next may be another's.
    """

    def __init__(
        self,
        schema: "pa.Schema | None",
        header: bool,
        parse_options: Any,
        convert_options: Any,
        max_record: int,
        *,
        merged: bool,
    ) -> None:
        import pyarrow.csv

        self._csv = pyarrow.csv
        self.schema = schema
        self._given = schema is not None
        self._header = header
        self._parse_options = parse_options or pyarrow.csv.ParseOptions()
        self._convert_options = convert_options or pyarrow.csv.ConvertOptions()
        self._max_record = max_record
        self._records = self._new_records()  # of the stream; each job has one of its own
        self._merged = merged
        self._names: list[str] | None = schema.names if merged and schema is not None else None
        self._carried = bytearray()

    @property
    def ready(self) -> bool:
        return self.schema is not None and self._names is not None

    def admit(self, piece: Piece) -> Job | Bad | None:
        if self._merged:
            return Job(piece.block, piece.offset, self._names)
        if piece.is_first:  # what the connection before left may have been given up
            self._records.reset()
            self._carried = bytearray()
            self._names = self.schema.names if not self._header and self.schema is not None else None
        if piece.left_out and (self._carried or (piece.is_first and self._header)):
            return self._left_out(piece)
        data, offset = piece.block, piece.offset - len(self._carried)
        if not data:
            carried, self._carried = self._carried, bytearray()
            return Job(memoryview(carried), offset, self._names) if carried and not broke(piece.stream) else None
        marked = piece.offset == 0 and data[: len(MARK)] == MARK
        end = self._records.last_end(data[len(MARK) :] if marked else data)
        end += len(MARK) if marked and end else 0
        whole = memoryview(bytes(self._carried + data[:end])) if self._carried and end else data[:end]
        if end:
            self._carried = bytearray()
        self._carried += data[end:]
        if not whole and len(self._carried) > self._max_record:
            return self._too_long(offset)
        return Job(whole, offset, self._names) if whole else None

    def run(self, job: Job, most: int) -> Outcome:
        if job.names is None:
            header = self._header_of(job)
            if isinstance(header, Bad):
                return Outcome([header])
            job = header
            if job.names is None:
                return Outcome([])
            self._names = job.names
        ends = line_ends if self._merged else self._new_records().ends
        return Search(job, self.schema, self._given, self._parse, ends, most).outcome()

    def _header_of(self, job: Job) -> Job | Bad:
        """Return what is behind the first record, with the names in that; without names if all of it is blank."""
        if job.offset == 0 and job.data[: len(MARK)] == MARK:
            job = job.behind(len(MARK))
        if self._parse_options.ignore_empty_lines:
            blank = re.match(rb"[\r\n]*", job.data)
            job = job.behind(blank.end() if blank else 0)
        if not job.data:
            return job
        end = self._new_records().first_end(job.data)
        header = job._replace(data=job.data[:end])
        try:
            self._check_columns(header.data)
            names = self._read(header.data, None, self._csv.ConvertOptions()).column_names
            self._parse(header, self.schema)  # whether the columns that are asked for are there
        except Exception as error:
            return Bad(job.offset, header.data, error.with_traceback(None), str(error), fatal=True)
        return job.behind(end)._replace(names=names)

    def _check_columns(self, header: memoryview) -> None:
        most = max(MOST_COLUMNS, len(self.schema or ()))
        if bytes(header).count(self._parse_options.delimiter.encode()) >= most:
            raise pa.ArrowInvalid(f"the header has more than {most} columns")

    def _parse(self, job: Job, schema: "pa.Schema | None") -> "pa.Table":
        convert = self._convert_options
        if schema is not None:
            convert = copy.copy(convert)
            convert.column_types, convert.include_columns = schema, schema.names
        marked = job.data[: len(MARK)] == MARK
        if self._merged:
            rows = job.data[len(MARK) :] if marked and job.offset == 0 else job.data
            if not self._new_records().are_lines(rows):
                raise pa.ArrowInvalid("a quoted field does not end in its line")
        return self._read(MARK + job.data if marked and job.offset > 0 else job.data, job.names, convert)

    def _read(self, data: Any, names: list[str] | None, convert: Any) -> "pa.Table":
        return self._csv.read_csv(
            pa.BufferReader(pa.py_buffer(data)),
            read_options=self._csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            parse_options=self._parse_options,
            convert_options=convert,
        )

    def _left_out(self, piece: Piece) -> Bad:
        """Refuse what lacks a line that the loader has skipped: rows without their header, or a record with a hole."""
        what = "a part of a quoted field" if self._carried else "the header"
        why = f"{what} was skipped, as longer than {self._max_record} bytes"
        carried, self._carried = self._carried, bytearray()
        offset = piece.offset - piece.left_out - len(carried)
        return Bad(offset, memoryview(carried), None, why, "raise max_record", fatal=True)

    def _too_long(self, offset: int) -> Bad:
        why = f"a quoted field does not end within {self._max_record} bytes"
        carried, self._carried = self._carried, bytearray()
        return Bad(offset, memoryview(carried), None, why, "raise max_record, or check the quotes", fatal=True)

    def _new_records(self) -> CsvRecords:
        options = self._parse_options
        quote, escape = (ord(char) if char else -1 for char in (options.quote_char, options.escape_char))
        return CsvRecords(ord(options.delimiter), quote, escape, bool(options.double_quote))
