# cython: language_level=3
# Calls of what is to be told of something, where nobody is there to catch what it raises.

from cpython.exc cimport PyErr_WriteUnraisable
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cdef extern from "Python.h":
    PyObject* call_or_null "PyObject_CallNoArgs" (object callback) noexcept


cdef inline void call_unraisably(object callback) noexcept:
    """Call what is to be told of something; what it raises goes to sys.unraisablehook."""
    cdef PyObject* result = call_or_null(callback)
    if result == NULL:
        PyErr_WriteUnraisable(callback)
    else:
        Py_DECREF(<object>result)
