# cython: language_level=3
# Where a TLS connection's records go, and those that the kernel has not taken yet.

cdef enum:
    MOST_RECORDS = 16

cdef struct Record:
    char* end               # of its ciphertext
    size_t size             # of what it holds, in plain bytes

cdef struct Behind:
    void* connection
    int fd
    bint gathers            # a write is being encrypted: nothing goes to the kernel yet
    char* data              # ROOM bytes, or NULL before the first write
    char* start             # what the kernel has not taken yet
    char* end
    Record[MOST_RECORDS] records    # those that the kernel has not taken whole
    int first               # the first of these, and how many there are up to the last
    int count
    size_t begun            # plain bytes of them, and of the record that OpenSSL is to be asked for again
    size_t again            # plain bytes of that record, or 0

cdef Behind* gathered(object sslobj, int fd) except? NULL
cdef bint make_room(Behind* behind) noexcept
cdef int write_records(
    Behind* behind, const char* data, size_t size, size_t limit, size_t* written, int* number
) noexcept nogil
