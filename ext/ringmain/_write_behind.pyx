# cython: language_level=3
"""Let the SSL inside Python's object write to a BIO (bio(7)) of ours, which gives the kernel many records a call.

OpenSSL makes a system call for each record of 16 KiB, and takes a write whole or not at all: of several records that
are written at once and broken off, nobody could tell which the peer has. So each record is a write of its own here,
and the BIO gathers their ciphertext and knows where each one ends: what the kernel has of it tells which bytes the peer
can have decrypted. A record that the kernel has only in part cannot be.
What is encrypted has to go out: the next write must begin with the same bytes, which are not encrypted again.
"""

from libc.errno cimport EAGAIN, EINTR, errno as c_errno
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ringmain._libssl cimport (
    SSL_ERROR_NONE,
    SSL_ERROR_SYSCALL,
    SSL_ERROR_WANT_WRITE,
    LibSsl,
    connection_of,
    libssl as found,
)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send" (int fd, const void* buffer, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

# <openssl/bio.h>
cdef enum:
    BIO_CTRL_FLUSH = 11
    BIO_RETRY_FLAGS = 0x0f
    BIO_RETRY_WRITE = 0x0a
    BIO_TYPE = 0x047e               # a sink, with a number that OpenSSL does not use

cdef enum:
    # Bytes: of a record at most (RFC 5246, section 6.2.3), and of all that are gathered.
    RECORD_ROOM = (16 << 10) + 2048 + 5
    ROOM = MOST_RECORDS * RECORD_ROOM

# A copy, since another module's variable is one load more for each of some twenty calls a write.
cdef LibSsl libssl = found
cdef void* method = NULL            # made for the first connection


cdef void* new_method() noexcept:
    """Return how a BIO of ours works; NULL without memory for it."""
    cdef void* made = libssl.new_method(BIO_TYPE, b"ringmain write-behind")
    if made != NULL:
        libssl.method_set_write(made, behind_write)
        libssl.method_set_control(made, behind_control)
        libssl.method_set_destroy(made, behind_destroy)
    return made


cdef Behind* gathered(object sslobj, int fd) except? NULL:
    """Gather what is written from now on; return where it goes to, or NULL where that cannot be.

    It stays Python's, and good as long as `sslobj` lives; Python may go on using it too.
    """
    cdef void* connection = connection_of(sslobj)
    cdef Behind* behind
    cdef void* bio
    global method
    if connection == NULL:
        return NULL
    if method == NULL:
        method = new_method()
    bio = libssl.get_sink(connection)
    if bio != NULL and libssl.get_type(bio) == BIO_TYPE:
        return <Behind*>libssl.get_data(bio)
    behind = <Behind*>calloc(1, sizeof(Behind))
    bio = libssl.new_bio(method) if behind != NULL and method != NULL else NULL
    if bio == NULL:
        free(behind)
        return NULL
    behind.connection, behind.fd = connection, fd
    libssl.set_data(bio, behind)
    libssl.set_sink(connection, bio)
    return behind


cdef bint make_room(Behind* behind) noexcept:
    """Make room for what is to be gathered, before the first write; tell whether there is memory for it."""
    if behind.data == NULL:
        behind.data = behind.start = behind.end = <char*>malloc(ROOM)
    return behind.data != NULL


cdef int write_records(
    Behind* behind, const char* data, size_t size, size_t limit, size_t* written, int* number
) noexcept nogil:
    """Encrypt data and give it to the kernel, until all is there or the kernel takes no more.

    The data must begin with the `begun` bytes that an earlier write has left. `written` counts whole records, which is
    what the peer can have decrypted. Returns what SSL_get_error answered, with errno in `number`.
    """
    cdef size_t taken = behind.begun - behind.again  # encrypted already
    cdef int answer = SSL_ERROR_NONE
    cdef int flushed
    libssl.clear_errors()
    while True:
        flushed = flush(behind, number)
        written[0] += settle(behind)
        if flushed != SSL_ERROR_NONE:
            return flushed
        if answer != SSL_ERROR_NONE and answer != SSL_ERROR_WANT_WRITE:  # that one wanted more room than there was
            return answer
        if taken == size:
            return SSL_ERROR_NONE
        answer = encrypt(behind, data, size, limit, &taken, number)


cdef int encrypt(
    Behind* behind, const char* data, size_t size, size_t limit, size_t* taken, int* number
) noexcept nogil:
    """Gather records of data[taken:] as long as there is room, and count in `taken` what is in them."""
    cdef size_t piece, done
    cdef int answer = SSL_ERROR_NONE
    behind.gathers = True
    while taken[0] < size and behind.count < MOST_RECORDS:
        piece = behind.again if behind.again else min(limit, size - taken[0])
        if libssl.write(behind.connection, data + taken[0], piece, &done) != 1:
            number[0] = c_errno
            behind.begun += piece - behind.again
            behind.again = piece
            answer = libssl.get_error(behind.connection, 0)
            break
        behind.begun += piece - behind.again
        behind.again = 0
        behind.records[behind.count].end = behind.end
        behind.records[behind.count].size = piece
        behind.count += 1
        taken[0] += piece
    behind.gathers = False
    return answer


cdef int flush(Behind* behind, int* number) noexcept nogil:
    """Give the kernel what is gathered; return what SSL_get_error would answer."""
    cdef ssize_t sent
    while behind.start < behind.end:
        sent = c_send(behind.fd, behind.start, behind.end - behind.start, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent >= 0:
            behind.start += sent
        elif c_errno != EINTR:
            number[0] = c_errno
            return SSL_ERROR_WANT_WRITE if c_errno == EAGAIN else SSL_ERROR_SYSCALL
    return SSL_ERROR_NONE


cdef size_t settle(Behind* behind) noexcept nogil:
    """Return how many plain bytes are in the records that the kernel has whole by now, and forget those."""
    cdef size_t size = 0
    while behind.first < behind.count and behind.records[behind.first].end <= behind.start:
        size += behind.records[behind.first].size
        behind.first += 1
    behind.begun -= size
    if behind.start == behind.end:
        behind.start = behind.end = behind.data
        behind.first = behind.count = 0
    return size


cdef int behind_write(void* bio, const char* data, int size) noexcept nogil:
    """Gather what a write of ours encrypts; send all else, alerts for instance, behind what was gathered."""
    cdef Behind* behind = <Behind*>libssl.get_data(bio)
    cdef ssize_t sent
    cdef int number = 0
    libssl.clear_flags(bio, BIO_RETRY_FLAGS)
    if behind.gathers:
        if size > behind.data + ROOM - behind.end:
            libssl.set_flags(bio, BIO_RETRY_WRITE)
            return -1
        memcpy(behind.end, data, size)
        behind.end += size
        return size
    if flush(behind, &number) == SSL_ERROR_NONE:
        sent = c_send(behind.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent >= 0:
            return <int>sent
    if c_errno == EAGAIN or c_errno == EINTR:
        libssl.set_flags(bio, BIO_RETRY_WRITE)
    return -1


cdef long behind_control(void* bio, int command, long number, void* pointer) noexcept nogil:
    return command == BIO_CTRL_FLUSH


cdef int behind_destroy(void* bio) noexcept nogil:
    cdef Behind* behind = <Behind*>libssl.get_data(bio)
    if behind != NULL:
        free(behind.data)
    free(behind)
    return 1
