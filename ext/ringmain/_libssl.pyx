# cython: language_level=3
"""Find the libssl that Python's `_ssl` has loaded, and the SSL and SSL_CTX inside Python's objects.

Nothing is linked: the functions are looked up in the library that is there, and what is found inside Python's objects
is checked before it is trusted: the object must be exactly of the type whose layout is known here. Where either fails,
there is no SSL to be had, and Python's own calls do the work.

A free-threaded Python (3.13t) always uses those. Its own calls lock the SSL, and nothing here takes that lock: the
interpreter's lock is what keeps two threads from one SSL, and there it may be off.
"""

import _ssl
import sys

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.time cimport time_t, tm
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

cdef extern from "<time.h>" nogil:
    time_t timegm(tm* broken_down)

# The heads of CPython's PySSLContext and PySSLSocket, unchanged since 3.2.
cdef struct ContextHead:
    PyObject ob_base
    void* context

cdef struct ConnectionHead:
    PyObject ob_base
    PyObject* socket
    void* connection
    PyObject* context

cdef Strings[2] error_strings
# Whether libssl was found: not where it is built into the interpreter.
HAS_LIBSSL = "t" not in sys.abiflags and find_libssl(getattr(_ssl, "__file__", None))


cdef bint find_libssl(object module_path) except -1:
    """Look up the functions of the libssl that `_ssl` has loaded; tell whether all are there."""
    cdef void* library
    cdef void** field = <void**>&libssl
    global error_library
    if module_path is None:
        return False
    library = dlopen(module_path.encode(), RTLD_LAZY)
    if library == NULL:
        return False
    for name in (  # in the order of the fields
        b"SSL_CTX_get_options", b"SSL_get_SSL_CTX", b"SSL_read_ex", b"SSL_get_error", b"SSL_shutdown", b"SSL_set0_rbio",
        b"SSL_get_rbio", b"SSL_ctrl", b"SSL_set_msg_callback", b"ERR_clear_error", b"ERR_peek_last_error",
        b"ERR_reason_error_string", b"BIO_meth_new", b"BIO_meth_set_read",
        b"BIO_meth_set_ctrl", b"BIO_meth_set_destroy", b"BIO_new", b"BIO_set_data", b"BIO_get_data", b"BIO_set_flags",
        b"BIO_clear_flags", b"SSL_write_ex", b"SSL_get_sigalgs", b"SSL_get_session",
        b"SSL_SESSION_get_max_fragment_length", b"BIO_method_type", b"SSL_CTX_set_ciphersuites",
        b"SSL_set_options", b"SSL_set0_wbio", b"SSL_get_wbio", b"BIO_meth_set_write",
        b"SSL_CTX_set_verify",
    ):
        field[0] = dlsym(library, name)
        if field[0] == NULL:
            return False
        field += 1
    field = <void**>&times
    for name in (b"SSL_CTX_get0_certificate", b"X509_get0_notAfter", b"ASN1_TIME_to_tm"):
        field[0] = dlsym(library, name)
        field += 1
    field = <void**>&errors
    for name in (b"ERR_get_next_error_library", b"ERR_load_strings", b"ERR_new", b"ERR_set_error"):
        field[0] = dlsym(library, name)
        if field[0] == NULL:
            return True
        field += 1
    error_library = errors.new_library()
    error_strings[0].error, error_strings[0].words = 1, "too many TLS messages without data"
    errors.add_strings(error_library, error_strings)
    return True


cdef void* context_of(object context) except? NULL:
    """Return the SSL_CTX inside an `ssl.SSLContext`, or NULL."""
    cdef void* found
    if not HAS_LIBSSL or not isinstance(context, _ssl._SSLContext):
        return NULL
    found = (<ContextHead*><PyObject*>context).context
    options = int(context.options) & 0xFFFFFFFFFFFFFFFF
    return found if libssl.get_options(found) == <uint64_t>options else NULL


def set_ciphersuites(context, str names):
    """Let an `ssl.SSLContext` use these suites of TLS 1.3 only, those that OpenSSL knows; False where it cannot."""
    cdef void* found = context_of(context)
    if found == NULL:
        return False
    libssl.set_ciphersuites(found, names.encode())
    libssl.clear_errors()  # get_ciphers() tells what it took
    return True


def require_any_certificate(context):
    """Let the `ssl.SSLContext` of a server require a certificate, whoever has signed it; False where it cannot.

    Python has no call for that: it asks for certificates that it verifies, or for none.
    """
    cdef void* found = context_of(context)
    if found == NULL:
        return False
    libssl.set_verify(found, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, take_any)
    return True


def not_after(context):
    """Return when the own certificate of an `ssl.SSLContext` expires, in seconds of Unix time; None without one.

    None too where that cannot be told: Python has no call for it.
    """
    cdef tm broken_down
    cdef const void* certificate
    cdef void* found = context_of(context)
    if found == NULL or times.get_certificate == NULL or times.get_not_after == NULL or times.to_tm == NULL:
        return None
    certificate = times.get_certificate(found)
    if certificate == NULL or not times.to_tm(times.get_not_after(certificate), &broken_down):
        return None
    return timegm(&broken_down)


cdef int take_any(int verified, void* store) noexcept nogil:
    return 1


cdef void* connection_of(object sslobj) except? NULL:
    """Return the SSL inside an `_ssl._SSLSocket`, or NULL."""
    cdef ConnectionHead* head
    cdef void* found
    if not HAS_LIBSSL or type(sslobj) is not _ssl._SSLSocket:
        return NULL
    head = <ConnectionHead*><PyObject*>sslobj
    context = sslobj.context
    if head.context != <PyObject*>context:
        return NULL
    found = context_of(context)
    if found == NULL or int(context.options) & SSL_OP_ENABLE_KTLS:
        return NULL
    return head.connection if libssl.get_context(head.connection) == found else NULL
