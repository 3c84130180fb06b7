# cython: language_level=3
"""Read and write TLS records by the libssl that Python's `_ssl` has loaded, many a call and without the GIL.

Python's own read is a lock, a call and two system calls for each record of 16 KiB. Here the SSL inside Python's object
is read directly, and reads from a BIO (bio(7)) that asks the kernel for 256 KiB at a time. OpenSSL's read-ahead would
do that too, but it moves all that it has read ahead to the front of its buffer for every record.
Nothing is linked: the functions are looked up in the library that is there, and what is found inside Python's objects
is checked before it is trusted. Where either fails, there is nothing to read by, and Python's own read does the work.
"""

import _ssl
import os
import ssl

from cpython.object cimport PyObject
cimport libc.errno
from libc.errno cimport EAGAIN, EINTR, errno as c_errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    int MSG_DONTWAIT

# <openssl/ssl.h>: the kernel may be decrypting already, below the BIO.
cdef enum:
    SSL_OP_ENABLE_KTLS = 8

# <openssl/bio.h>
cdef enum:
    BIO_CTRL_EOF = 2
    BIO_CTRL_FLUSH = 11
    BIO_RETRY_FLAGS = 0x0f
    BIO_RETRY_READ = 0x09
    BIO_TYPE = 0x047f               # a source, with a number that OpenSSL does not use

cdef enum:
    RECORD = 16 << 10               # bytes; the most that one holds
    AHEAD = 256 << 10               # bytes; what fits the cache beside the block that they are decrypted to


cdef struct LibSsl:
    uint64_t (*get_options)(const void* context) noexcept
    void* (*get_context)(const void* connection) noexcept
    int (*read)(void* connection, void* buffer, size_t size, size_t* got) noexcept nogil
    int (*get_error)(const void* connection, int result) noexcept nogil
    int (*shutdown)(void* connection) noexcept
    void (*set_source)(void* connection, void* bio) noexcept
    void (*clear_errors)() noexcept nogil
    unsigned long (*last_error)() noexcept
    const char* (*reason)(unsigned long error) noexcept
    void* (*new_method)(int kind, const char* name) noexcept
    int (*method_set_read)(void* method, int (*read)(void*, char*, int) noexcept nogil) noexcept
    int (*method_set_control)(void* method, long (*control)(void*, int, long, void*) noexcept nogil) noexcept
    int (*method_set_destroy)(void* method, int (*destroy)(void*) noexcept nogil) noexcept
    void* (*new_bio)(const void* method) noexcept
    void (*set_data)(void* bio, void* data) noexcept
    void* (*get_data)(void* bio) noexcept nogil
    void (*set_flags)(void* bio, int flags) noexcept nogil
    void (*clear_flags)(void* bio, int flags) noexcept nogil
    int (*write)(void* connection, const void* buffer, size_t size, size_t* written) noexcept nogil
    int (*get_sigalgs)(void* connection, int index, int* sign, int* hash, int* both, char* raw, char* raw_hash) noexcept
    void* (*get_session)(const void* connection) noexcept
    unsigned char (*fragment_code)(const void* session) noexcept

# The heads of CPython's PySSLContext and PySSLSocket, unchanged since 3.2.
cdef struct ContextHead:
    PyObject ob_base
    void* context

cdef struct ConnectionHead:
    PyObject ob_base
    PyObject* socket
    void* connection
    PyObject* context

# What a BIO of ours has read ahead.
cdef struct Ahead:
    int fd
    bint ended
    char* start
    char* end
    char data[AHEAD]

cdef LibSsl libssl
cdef void* method = NULL
# Whether libssl was found: not where it is built into the interpreter.
HAS_LIBSSL = find_libssl(getattr(_ssl, "__file__", None))


cdef bint find_libssl(object module_path) except -1:
    """Look up the functions of the libssl that `_ssl` has loaded; tell whether all are there."""
    cdef void* library
    cdef void** field = <void**>&libssl
    global method
    if module_path is None:
        return False
    library = dlopen(module_path.encode(), RTLD_LAZY)
    if library == NULL:
        return False
    for name in (  # in the order of the fields
        b"SSL_CTX_get_options", b"SSL_get_SSL_CTX", b"SSL_read_ex", b"SSL_get_error", b"SSL_shutdown", b"SSL_set0_rbio",
        b"ERR_clear_error", b"ERR_peek_last_error", b"ERR_reason_error_string", b"BIO_meth_new", b"BIO_meth_set_read",
        b"BIO_meth_set_ctrl", b"BIO_meth_set_destroy", b"BIO_new", b"BIO_set_data", b"BIO_get_data", b"BIO_set_flags",
        b"BIO_clear_flags", b"SSL_write_ex", b"SSL_get_sigalgs", b"SSL_get_session",
        b"SSL_SESSION_get_max_fragment_length",
    ):
        field[0] = dlsym(library, name)
        if field[0] == NULL:
            return False
        field += 1
    method = libssl.new_method(BIO_TYPE, b"ringmain read-ahead")
    if method == NULL:
        return False
    libssl.method_set_read(method, ahead_read)
    libssl.method_set_control(method, ahead_control)
    libssl.method_set_destroy(method, ahead_destroy)
    return True


cdef void* connection_of(object sslobj) except? NULL:
    """Return the SSL inside an `_ssl._SSLSocket`, or NULL."""
    cdef ConnectionHead* head = <ConnectionHead*><PyObject*>sslobj
    cdef object context = sslobj.context
    cdef void* found
    if not HAS_LIBSSL or head.context != <PyObject*>context:
        return NULL
    found = (<ContextHead*><PyObject*>context).context
    options = int(context.options) & 0xFFFFFFFFFFFFFFFF
    if libssl.get_options(found) != <uint64_t>options or options & SSL_OP_ENABLE_KTLS:
        return NULL
    return head.connection if libssl.get_context(head.connection) == found else NULL


cdef void* read_ahead_of(object sslobj, int fd) except? NULL:
    """Let the SSL inside an `_ssl._SSLSocket` read ahead, and return it; NULL where that cannot be.

    It stays Python's, and good as long as `sslobj` lives; Python may go on using it too.
    """
    cdef void* connection = connection_of(sslobj)
    cdef Ahead* ahead
    cdef void* bio
    if connection == NULL:
        return NULL
    ahead = <Ahead*>malloc(sizeof(Ahead))
    bio = libssl.new_bio(method) if ahead != NULL else NULL
    if bio == NULL:
        free(ahead)
        return NULL
    ahead.fd, ahead.ended = fd, False
    ahead.start = ahead.end = ahead.data
    libssl.set_data(bio, ahead)
    libssl.set_source(connection, bio)
    return connection


cdef int read_records(
    void* connection, char* window, size_t room, size_t* filled, long* records, int* number
) noexcept nogil:
    """Decrypt records into the window until it is full or there are no more for now.

    Returns SSL_ERROR_NONE, or what SSL_get_error answered, with errno in `number`.
    """
    cdef size_t got
    libssl.clear_errors()
    while filled[0] < room:
        if libssl.read(connection, window + filled[0], room - filled[0], &got) != 1:
            number[0] = c_errno
            return libssl.get_error(connection, 0)
        filled[0] += got
        records[0] += 1
    return SSL_ERROR_NONE


cdef size_t record_limit(void* connection) noexcept:
    """Return how many bytes a record to this peer holds at most."""
    cdef int code = libssl.fragment_code(libssl.get_session(connection))
    return <size_t>512 << (code - 1) if 1 <= code <= 4 else RECORD  # RFC 6066, section 4


cdef int write_records(
    void* connection, const char* data, size_t size, size_t limit, size_t* begun, size_t* written, int* number
) noexcept nogil:
    """Encrypt data and give it to the kernel, a record at a time, until all is there or the kernel takes no more.

    `begun` is the size of a record that the kernel has taken in part, or 0: the data must begin with it the next time.
    `written` counts whole records, which is what the peer can have decrypted. Returns as `read_records`.
    """
    cdef size_t piece, done
    libssl.clear_errors()
    while written[0] < size:
        piece = begun[0] if begun[0] else min(limit, size - written[0])
        if libssl.write(connection, data + written[0], piece, &done) != 1:
            number[0] = c_errno
            begun[0] = piece
            return libssl.get_error(connection, 0)
        begun[0] = 0
        written[0] += piece
    return SSL_ERROR_NONE


def may_reject_us(sslobj):
    """Tell whether a server has asked for a certificate; True where that cannot be known.

    The list of signatures that it takes for one is in that request only.
    """
    cdef void* connection = connection_of(sslobj)
    return connection == NULL or libssl.get_sigalgs(connection, -1, NULL, NULL, NULL, NULL, NULL) > 0


def send_close_notify(sslobj):
    """Say that nothing follows, and read nothing: Python's own `shutdown` goes on to read, and drops what has come.

    False where that cannot be done. Raises SSLWantWriteError when it is to be tried again once the socket is writable.
    """
    cdef void* connection = connection_of(sslobj)
    cdef int result, answer
    if connection == NULL:
        return False
    libssl.clear_errors()
    result = libssl.shutdown(connection)
    if result < 0:
        answer = libssl.get_error(connection, result)
        if answer == SSL_ERROR_WANT_WRITE:
            raise ssl.SSLWantWriteError(answer, "close_notify waits")
        raise error_of(answer, c_errno)
    return True


cdef object error_of(int answer, int number):
    """Return the exception that stands for SSL_get_error's answer and errno."""
    cdef unsigned long code = libssl.last_error()
    cdef const char* text = libssl.reason(code) if code else NULL
    libssl.clear_errors()
    if answer != SSL_ERROR_SSL and number:
        return OSError(number, os.strerror(number))
    words = text.decode() if text != NULL else "unexpected eof"
    error = (ssl.SSLEOFError if "unexpected eof" in words else ssl.SSLError)(answer, words)
    error.reason = words
    return error


cdef int ahead_read(void* bio, char* out, int size) noexcept nogil:
    cdef Ahead* ahead = <Ahead*>libssl.get_data(bio)
    cdef ssize_t got
    libssl.clear_flags(bio, BIO_RETRY_FLAGS)
    if ahead.start == ahead.end:
        libc.errno.errno = 0  # an end of file leaves it as it was
        got = recv(ahead.fd, ahead.data, AHEAD, MSG_DONTWAIT)
        if got <= 0:
            ahead.ended = got == 0
            if got < 0 and (c_errno == EAGAIN or c_errno == EINTR):
                libssl.set_flags(bio, BIO_RETRY_READ)
            return <int>got
        ahead.start = ahead.data
        ahead.end = ahead.data + got
    if size > ahead.end - ahead.start:
        size = <int>(ahead.end - ahead.start)
    memcpy(out, ahead.start, size)
    ahead.start += size
    return size


cdef long ahead_control(void* bio, int command, long number, void* pointer) noexcept nogil:
    if command == BIO_CTRL_EOF:
        return (<Ahead*>libssl.get_data(bio)).ended
    return command == BIO_CTRL_FLUSH


cdef int ahead_destroy(void* bio) noexcept nogil:
    free(libssl.get_data(bio))
    return 1
