# cython: language_level=3
"""Let the SSL inside Python's object read from a BIO (bio(7)) of ours, many records a call and without the GIL.

Python's own read is a lock, a call and two system calls for each record of 16 KiB. This BIO asks the kernel for 512 KiB
at a time. OpenSSL's read-ahead would do that too, but it moves all that it has read ahead to the front of its buffer
for every record.
What a peer can make OpenSSL do in one call is bounded, in the handshake too. OpenSSL goes on by itself as long as it is
given messages without data (key updates, session tickets, requests for a handshake), so the BIO pauses now and then,
which looks as if the socket were empty; and it gives nothing more to whom sends such messages without end.
"""

cimport libc.errno
from libc.errno cimport EAGAIN, EINTR, EPROTO, errno as c_errno
from libc.math cimport fmin
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ringmain._clock cimport monotonic
from ringmain._libssl cimport (
    SSL3_RT_HANDSHAKE,
    SSL_CTRL_SET_MSG_CALLBACK_ARG,
    SSL_ERROR_NONE,
    SSL_ERROR_WANT_READ,
    LibSsl,
    connection_of,
    error_library,
    errors,
    libssl as found,
)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    int MSG_DONTWAIT

# <openssl/bio.h>
cdef enum:
    BIO_CTRL_EOF = 2
    BIO_CTRL_FLUSH = 11
    BIO_RETRY_FLAGS = 0x0f
    BIO_RETRY_READ = 0x09
    BIO_TYPE = 0x047f               # a source, with a number that OpenSSL does not use

cdef enum:
    # Bytes. 256 KiB cost a fifth more CPU, whatever the size of the block that they are decrypted to, 64 KiB a quarter
    # more; 1 and 2 MiB spare nothing more (a core's L2 being 1 MiB).
    AHEAD = 512 << 10
    # Bytes that one call of Python's own, or of a handshake, takes from the kernel.
    PORTION = 64 << 10

# Messages without data that are taken at once, and a second. A handshake has ten, a chatty peer some tens in all; each
# key update costs some 30 us.
cdef double MESSAGES = 1000
cdef double MESSAGES_PER_SECOND = 100

# A copy, since another module's variable is one load more for each of some twenty calls a read.
cdef LibSsl libssl = found
cdef void* method = NULL            # made for the first connection


cdef void* new_method() noexcept:
    """Return how a BIO of ours works; NULL without memory for it."""
    cdef void* made = libssl.new_method(BIO_TYPE, b"ringmain read-ahead")
    if made != NULL:
        libssl.method_set_read(made, ahead_read)
        libssl.method_set_control(made, ahead_control)
        libssl.method_set_destroy(made, ahead_destroy)
    return made


cdef Ahead* bounded(object sslobj, int fd) except? NULL:
    """Bound what the peer can make one call do; return the source of its bytes, or NULL where that cannot be.

    It stays Python's, and good as long as `sslobj` lives; Python may go on using it too.
    """
    cdef void* connection = connection_of(sslobj)
    cdef Ahead* ahead
    cdef void* bio
    global method
    if connection == NULL:
        return NULL
    if method == NULL:
        method = new_method()
    bio = libssl.get_source(connection)
    if bio != NULL and libssl.get_type(bio) == BIO_TYPE:
        return <Ahead*>libssl.get_data(bio)
    ahead = <Ahead*>calloc(1, sizeof(Ahead))
    bio = libssl.new_bio(method) if ahead != NULL and method != NULL else NULL
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


cdef void allot(Ahead* ahead) noexcept:
    """Let it take more from the kernel than OpenSSL asks for, if there is memory for that."""
    if ahead.data == NULL:
        ahead.data = ahead.start = ahead.end = <char*>malloc(AHEAD)


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
