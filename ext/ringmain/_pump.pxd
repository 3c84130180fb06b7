# cython: language_level=3
# Fields of a pump; _pump.pyx tells what they promise.

from ringmain._counters cimport Counters
from ringmain._low_water cimport LowWater

cdef enum:
    CHUNK = 1 << 20     # what one call moves at most


cdef enum Side:
    NEITHER
    SOURCE
    DESTINATION


cdef enum Step:
    MOVED           # or ready to: go on
    NOTHING         # moves right now
    WAITING         # for `fd` to be ready for `events`, or until `due`
    ENDED           # the source has no more
    FAILED          # `side` failed with `number`
    STOPPED


cdef enum Wait:
    EMPTY           # the source has nothing
    FULL            # the destination takes nothing; our own pipe is empty
    LEFT            # the destination takes nothing; `left` bytes are in our own pipe
    KEPT            # the destination takes nothing; `few` holds bytes
    MORE            # for the others' turn only
    PAUSING         # until `due`


cdef class Pump:
    cdef readonly Counters counters
    cdef readonly str verdict           # None while bytes move; set once
    cdef readonly object error          # the OSError behind the verdict, or what `stop` was given
    cdef readonly str failed            # whose error it is: "source", "destination", or None
    cdef readonly bint refused          # one of them cannot be spliced; no byte has moved
    cdef readonly bint paused           # the destination takes nothing: the source waits
    cdef object loop                    # while it runs: has a `wake` to be called when it is told to stop
    cdef object over                    # called when it is over
    cdef LowWater low_water            # None where the source is no socket
    cdef int source, destination
    cdef bint through                   # neither side is a pipe: bytes go through one of our own
    cdef int pipe_out, pipe_in          # that, or -1; a crowd lends one for as long as there are bytes in it
    cdef bint stopping
    cdef str stop_verdict
    cdef object stop_error
    cdef size_t chunk                   # what is taken at once
    cdef long long offset               # where a source that is a file goes on, else -1
    cdef Step step                      # what became of the last attempt
    cdef Wait waits                     # if WAITING: why
    cdef int fd                         # what for, -1: for nothing but the time
    cdef short events
    cdef double due                     # until when on the monotonic clock, 0: for ever
    cdef int timed_at                   # where a crowd has it among those that wait for a time, else -1
    cdef double stalled_since
    cdef bint plenty                    # the last read was a large one: there is more, as a rule
    cdef Py_ssize_t left
    cdef char few[4096]                 # PIPE_BUF
    cdef Py_ssize_t few_size
    cdef Side side
    cdef int number                     # errno of the side that failed

    cdef void open_own(self, long size) noexcept
    cdef void close_own(self) noexcept
    cdef void finish(self) noexcept
    cdef void begin(self) noexcept
    cdef void go_on(self, bint ready) noexcept nogil
    cdef Step settle(self, Step step) noexcept nogil
    cdef Step turn(self, bint ready) noexcept nogil
    cdef Step stand_still(self, Wait waited) noexcept nogil
    cdef Step wind_up(self) noexcept nogil
    cdef Step pull(self) noexcept nogil
    cdef void took(self, Py_ssize_t size) noexcept nogil
    cdef Step gave(self, Py_ssize_t size) noexcept nogil
    cdef Step push(self) noexcept nogil
    cdef Step step_over(self) noexcept nogil
    cdef Step push_few(self) noexcept nogil
    cdef Step wait_for_source(self) noexcept nogil
    cdef Step wait_for_destination(self, Wait waits) noexcept nogil
    cdef void end_stall(self) noexcept nogil
    cdef bint flooded(self) noexcept nogil
    cdef Side guilty(self, int number) noexcept nogil
    cdef Step fail(self, Side side) noexcept nogil
