# cython: language_level=3
# A cutter at frames, whose sizes stand in front; _frames.pyx tells how.

cimport cython

from ringmain._cutter cimport Cutter


@cython.final
cdef class Frames(Cutter):
    cdef readonly int width                 # bytes of a binary length; 0: decimal digits and a space, or a line
    cdef readonly bint little               # the first byte of a length is the lowest
