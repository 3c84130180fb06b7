# cython: language_level=3
"""Where records end: all that a ring knows of what is in its blocks.

No I/O, no Python: the ring calls it between reading its state and writing it, where it may not raise.
"""


cdef class Cutter:
    """Tell where records end.

    Of a record that is thrown away, `overlap` bytes are kept, since its end may begin in them.
    """

    cdef Py_ssize_t first(self, const char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Return the offset behind the first record that ends between two offsets, or -1; one begins at `start`."""
        return -1

    cdef Py_ssize_t last(self, const char* data, Py_ssize_t start, Py_ssize_t seen, Py_ssize_t end) noexcept nogil:
        """Return the same of the last record; none ends between `start` and `seen`."""
        return -1
