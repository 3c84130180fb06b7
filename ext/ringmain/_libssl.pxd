# cython: language_level=3
# The functions of libssl that _read_ahead, _write_behind and _tls call; _libssl.pyx tells how they are found.

from libc.stdint cimport uint64_t
from libc.time cimport tm

# <openssl/ssl.h>
cdef enum:
    SSL_ERROR_NONE = 0              # answers of SSL_get_error
    SSL_ERROR_SSL = 1
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3
    SSL_ERROR_SYSCALL = 5
    SSL_ERROR_ZERO_RETURN = 6
    SSL_OP_ENABLE_KTLS = 8          # the kernel may be decrypting already, below the BIO
    SSL_OP_IGNORE_UNEXPECTED_EOF = 0x80
    SSL_CTRL_SET_MSG_CALLBACK_ARG = 16
    SSL3_RT_HANDSHAKE = 22
    SSL_VERIFY_PEER = 1
    SSL_VERIFY_FAIL_IF_NO_PEER_CERT = 2

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
    void (*set_sink)(void* connection, void* bio) noexcept
    void* (*get_sink)(const void* connection) noexcept
    int (*method_set_write)(void* method, int (*write)(void*, const char*, int) noexcept nogil) noexcept
    void (*set_verify)(void* context, int mode, int (*callback)(int, void*) noexcept nogil) noexcept

# <openssl/err.h>, since 3.0: how to give an error of ours words.
cdef struct Strings:
    unsigned long error
    const char* words

cdef struct LibSslErrors:
    int (*new_library)() noexcept
    int (*add_strings)(int library, Strings* strings) noexcept
    void (*new_error)() noexcept nogil
    void (*set_error)(int library, int reason, const char* format, ...) noexcept nogil

# <openssl/x509.h>: when a context's own certificate expires. Apart from the others, since nothing else needs them.
cdef struct LibSslTimes:
    void* (*get_certificate)(const void* context) noexcept
    const void* (*get_not_after)(const void* certificate) noexcept
    int (*to_tm)(const void* time, tm* broken_down) noexcept

cdef LibSsl libssl
cdef LibSslErrors errors
cdef LibSslTimes times              # NULL where one is missing
cdef int error_library              # the library that errors of ours are of; 0 where OpenSSL is too old for them

cdef void* connection_of(object sslobj) except? NULL
