# cython: language_level=3
"""Read and write TLS records by the libssl that Python's `_ssl` has loaded, many a call and without the GIL.

Python's own read is a lock, a call and two system calls for each record of 16 KiB. Here the SSL inside Python's object
is read directly, and reads from a BIO (bio(7)) that asks the kernel for 256 KiB at a time. OpenSSL's read-ahead would
do that too, but it moves all that it has read ahead to the front of its buffer for every record.
What a peer can make OpenSSL do in one call is bounded, in the handshake too. OpenSSL goes on by itself as long as it is
given messages without data (key updates, session tickets, requests for a handshake), so the BIO pauses now and then,
which looks as if the socket were empty; and it gives nothing more to whom sends such messages without end.
Nothing is linked: the functions are looked up in the library that is there, and what is found inside Python's objects
is checked before it is trusted. Where either fails, there is nothing to read by, and Python's own read does the work.
"""

import _ssl
import os
import ssl

from cpython.object cimport PyObject
cimport libc.errno
from libc.errno cimport EAGAIN, EINTR, EPROTO, errno as c_errno
from libc.math cimport fmin
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

from ringmain._coalesce cimport monotonic

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    int MSG_DONTWAIT

# <openssl/ssl.h>: the kernel may be decrypting already, below the BIO.
cdef enum:
    SSL_OP_ENABLE_KTLS = 8
    SSL_OP_IGNORE_UNEXPECTED_EOF = 0x80
    SSL_CTRL_SET_MSG_CALLBACK_ARG = 16
    SSL3_RT_HANDSHAKE = 22

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
    # Bytes that one call of Python's own, or of a handshake, takes from the kernel.
    PORTION = 64 << 10

# Messages without data that are taken at once, and a second. A handshake has ten, a chatty peer some tens in all; each
# key update costs some 30 us.
cdef double MESSAGES = 1000
cdef double MESSAGES_PER_SECOND = 100


cdef struct LibSsl:
    uint64_t (*get_options)(const void* context) noexcept
    void* (*get_context)(const void* connection) noexcept
    int (*read)(void* connection, void* buffer, size_t size, size_t* got) noexcept nogil
    int (*get_error)(const void* connection, int result) noexcept nogil
    int (*shutdown)(void* connection) noexcept
    void (*set_source)(void* connection, void* bio) noexcept
    void* (*get_source)(const void* connection) noexcept
    long (*control)(void* connection, int command, long number, void* pointer) noexcept
    void (*set_message_callback)(
        void* connection, void (*callback)(int, int, int, const void*, size_t, void*, void*) noexcept nogil
    ) noexcept
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
    int (*get_type)(const void* bio) noexcept
    int (*set_ciphersuites)(void* context, const char* names) noexcept
    uint64_t (*set_options)(void* connection, uint64_t options) noexcept

# <openssl/err.h>, since 3.0: how to give an error of ours words.
cdef struct Strings:
    unsigned long error
    const char* words

cdef struct LibSslErrors:
    int (*new_library)() noexcept
    int (*add_strings)(int library, Strings* strings) noexcept
    void (*new_error)() noexcept nogil
    void (*set_error)(int library, int reason, const char* format, ...) noexcept nogil

# The heads of CPython's PySSLContext and PySSLSocket, unchanged since 3.2.
cdef struct ContextHead:
    PyObject ob_base
    void* context

cdef struct ConnectionHead:
    PyObject ob_base
    PyObject* socket
    void* connection
    PyObject* context

cdef LibSsl libssl
cdef LibSslErrors errors
cdef int error_library = 0          # 0 where OpenSSL is too old for errors of ours
cdef Strings[2] error_strings
cdef void* method = NULL
# Whether libssl was found: not where it is built into the interpreter.
HAS_LIBSSL = find_libssl(getattr(_ssl, "__file__", None))


cdef bint find_libssl(object module_path) except -1:
    """Look up the functions of the libssl that `_ssl` has loaded; tell whether all are there."""
    cdef void* library
    cdef void** field = <void**>&libssl
    global error_library, method
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
        b"SSL_set_options",
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
    if not HAS_LIBSSL:
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


cdef void* connection_of(object sslobj) except? NULL:
    """Return the SSL inside an `_ssl._SSLSocket`, or NULL."""
    cdef ConnectionHead* head = <ConnectionHead*><PyObject*>sslobj
    cdef object context = sslobj.context
    cdef void* found
    if not HAS_LIBSSL or head.context != <PyObject*>context:
        return NULL
    found = context_of(context)
    if found == NULL or int(context.options) & SSL_OP_ENABLE_KTLS:
        return NULL
    return head.connection if libssl.get_context(head.connection) == found else NULL


cdef Ahead* bounded(object sslobj, int fd) except? NULL:
    """Bound what the peer can make one call do; return the source of its bytes, or NULL where that cannot be.

    It stays Python's, and good as long as `sslobj` lives; Python may go on using it too.
    """
    cdef void* connection = connection_of(sslobj)
    cdef Ahead* ahead
    cdef void* bio
    if connection == NULL:
        return NULL
    bio = libssl.get_source(connection)
    if bio != NULL and libssl.get_type(bio) == BIO_TYPE:
        return <Ahead*>libssl.get_data(bio)
    ahead = <Ahead*>calloc(1, sizeof(Ahead))
    bio = libssl.new_bio(method) if ahead != NULL else NULL
    if bio == NULL:
        free(ahead)
        return NULL
    ahead.connection, ahead.fd, ahead.budget = connection, fd, PORTION
    ahead.allowed, ahead.counted = MESSAGES, monotonic()
    libssl.set_data(bio, ahead)
    libssl.set_source(connection, bio)
    libssl.control(connection, SSL_CTRL_SET_MSG_CALLBACK_ARG, 0, ahead)
    libssl.set_message_callback(connection, count_message)
    return ahead


def bound(sslobj, int fd):
    """Bound what the peer can make one call of a handshake, read or close do.

    Each call takes 64 KiB at most from the kernel, then it raises SSLWantReadError with more to read. A peer that sends
    over 1,000 messages without data, and over 100 a second, gets an SSLError.
    """
    if sslobj is not None:  # None where the peer has gone already
        bounded(sslobj, fd)


cdef Ahead* read_ahead_of(object sslobj, int fd) except? NULL:
    """Let the SSL inside an `_ssl._SSLSocket` read ahead, and return what from; NULL where that cannot be."""
    cdef Ahead* ahead = bounded(sslobj, fd)
    if ahead != NULL and ahead.data == NULL:
        ahead.data = ahead.start = ahead.end = <char*>malloc(AHEAD)
    return ahead if ahead != NULL and ahead.data != NULL else NULL


cdef int read_records(
    Ahead* ahead, char* window, size_t room, size_t* filled, long* records, int* number
) noexcept nogil:
    """Decrypt records into the window until it is full, there are no more for now, or much has come without data.

    Returns SSL_ERROR_NONE, also when `ahead.spent` tells that there is more, or what SSL_get_error answered, with errno
    in `number`.
    """
    cdef size_t got
    cdef int answer
    libssl.clear_errors()
    ahead.spent = False
    ahead.budget = room
    while filled[0] < room:
        if libssl.read(ahead.connection, window + filled[0], room - filled[0], &got) != 1:
            number[0] = c_errno
            answer = libssl.get_error(ahead.connection, 0)
            return SSL_ERROR_NONE if answer == SSL_ERROR_WANT_READ and ahead.spent else answer
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


def expect_end(sslobj):
    """Let an end without close_notify be one like any other: else OpenSSL sends an alert and writes no more."""
    cdef void* connection = connection_of(sslobj)
    if connection != NULL:
        libssl.set_options(connection, SSL_OP_IGNORE_UNEXPECTED_EOF)


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
    if ahead.refused or ahead.start == ahead.end:
        got = take_more(ahead, bio, out, size)
        if got <= 0 or ahead.data == NULL:
            return <int>got
        ahead.start = ahead.data
        ahead.end = ahead.data + got
    if size > ahead.end - ahead.start:
        size = <int>(ahead.end - ahead.start)
    memcpy(out, ahead.start, size)
    ahead.start += size
    return size


cdef ssize_t take_more(Ahead* ahead, void* bio, char* out, int size) noexcept nogil:
    """Receive into `data`, or `out` where that is NULL."""
    cdef ssize_t got
    if ahead.refused:
        libc.errno.errno = EPROTO
        if error_library:
            errors.new_error()
            errors.set_error(error_library, 1, NULL)
        return -1
    if ahead.budget <= 0:
        ahead.spent = True
        ahead.budget = PORTION
        libssl.set_flags(bio, BIO_RETRY_READ)
        return -1
    libc.errno.errno = 0  # an end of file leaves it as it was
    got = recv(ahead.fd, ahead.data if ahead.data != NULL else out, AHEAD if ahead.data != NULL else size, MSG_DONTWAIT)
    ahead.ended = got == 0
    if got > 0:
        ahead.budget -= got
    elif got < 0 and (c_errno == EAGAIN or c_errno == EINTR):
        libssl.set_flags(bio, BIO_RETRY_READ)
    return got


cdef void count_message(
    int sent, int version, int kind, const void* data, size_t size, void* connection, void* pointer
) noexcept nogil:
    """Count a message of the handshake protocol, which OpenSSL tells of; in a flood, see to it that no more is read."""
    cdef Ahead* ahead = <Ahead*>pointer
    cdef double now
    if sent or kind != SSL3_RT_HANDSHAKE:
        return
    now = monotonic()
    ahead.allowed = fmin(MESSAGES, ahead.allowed + (now - ahead.counted) * MESSAGES_PER_SECOND) - 1
    ahead.counted = now
    if ahead.allowed < 0:
        ahead.refused = True


cdef long ahead_control(void* bio, int command, long number, void* pointer) noexcept nogil:
    if command == BIO_CTRL_EOF:
        return (<Ahead*>libssl.get_data(bio)).ended
    return command == BIO_CTRL_FLUSH


cdef int ahead_destroy(void* bio) noexcept nogil:
    cdef Ahead* ahead = <Ahead*>libssl.get_data(bio)
    if ahead != NULL:
        free(ahead.data)
    free(ahead)
    return 1
