"""One job of Arrow's: all of it at once, or, where the parser refuses that, around its bad records."""

import re
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from ringmain.feeds._refusal import Bad

if TYPE_CHECKING:
    from collections.abc import Callable


class Job(NamedTuple):
    """Whole records, to be parsed by any thread; `offset` bytes of the stream lie before them.

    It knows nothing of the stream, which a thread that is still at work must not keep open.
    """

    data: memoryview
    offset: int
    names: list[str] | None = None  # of the columns, or None where the first record has them

    def behind(self, offset: int) -> "Job":
        """Return the job without its first bytes."""
        return self._replace(data=self.data[offset:], offset=self.offset + offset)


class Outcome(NamedTuple):
    """What became of a job, in order, and what of it is left to do."""

    parts: "list[pa.RecordBatch | Bad]"
    rest: Job | None = None


class Search:
    """Parse a job, with at most so many bad records.

    Without a schema that of the first records is taken, as many of them as the parser takes at once; it is `given` if
    it is the user's. `ends_of` returns the offset behind each record.
    """

    def __init__(
        self,
        job: Job,
        schema: "pa.Schema | None",
        given: bool,
        parse: "Callable[[Job, pa.Schema | None], pa.Table]",
        ends_of: "Callable[[memoryview], memoryview[int]]",
        most: int,
    ) -> None:
        self._job = job
        self._schema = schema
        self._given = given
        self._parse = parse
        self._ends_of = ends_of
        self._most = most
        self._ends: memoryview[int] | list[int] = []

    def outcome(self) -> Outcome:
        """Parse the job."""
        if not self._job.data:
            return Outcome([])
        batches, error = self._try(self._job)
        if error is None:
            return Outcome(list(batches))
        self._ends = self._ends_of(self._job.data)
        return self._around()

    def _around(self) -> Outcome:
        parts: list[pa.RecordBatch | Bad] = []
        at = found = 0
        while at < len(self._ends) and found < self._most:
            good, batches, error = self._longest(at)
            if batches and self._schema is None:
                self._schema = batches[0].schema
            parts += batches
            at += good
            if error is not None:
                parts.append(self._bad(at, error))
                at += 1
                found += 1
        return Outcome(parts, self._job.behind(self._start(at)) if at < len(self._ends) else None)

    def _longest(self, at: int) -> "tuple[int, list[pa.RecordBatch], Exception | None]":
        """Return how many records from one on are good, their batches, and what is wrong with the one behind them.

        It tries twice as many each time, then halves: the cost follows how far away the bad one is.
        """
        good, refused, size = 0, len(self._ends) - at + 1, 1
        batches: list[pa.RecordBatch] = []
        error: Exception | None = None
        while refused - good > 1:
            start = self._start(at)
            job = self._job.behind(start)
            tried, wrong = self._try(job._replace(data=job.data[: self._ends[at + size - 1] - start]))
            if wrong is None:
                good, batches = size, tried
            else:
                refused, error = size, wrong
            size = max(1, min(2 * good, (good + refused) // 2))
        return good, batches, error

    def _try(self, job: Job) -> "tuple[list[pa.RecordBatch], Exception | None]":
        try:
            return [batch for batch in self._parse(job, self._schema).to_batches() if batch.num_rows], None
        except MemoryError:
            raise
        except Exception as error:
            return [], error.with_traceback(None)  # its frames hold blocks, and itself

    def _start(self, at: int) -> int:
        return self._ends[at - 1] if at else 0

    def _bad(self, at: int, error: Exception) -> Bad:
        start = self._start(at)
        why = re.sub(r" in row \d+|Row #\d+: ", "", str(error))  # rows of this block, which nobody else can count
        narrow = not self._given and re.search("changed from|onver|unexpected field", why)
        remedy = "the schema is the first block's: give a wider one with schema=" if narrow else ""
        return Bad(self._job.offset + start, self._job.data[start : self._ends[at]], error, why, remedy)
