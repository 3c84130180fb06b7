# cython: language_level=3
# The system calls of a pump; where splice(2) and sendfile(2) do not exist they fail with ENOSYS.

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #ifdef __linux__
    #include <sys/sendfile.h>
    #define RINGMAIN_HAS_SPLICE 1
    #else
    #define RINGMAIN_HAS_SPLICE 0
    #define SPLICE_F_MOVE 0
    #define SPLICE_F_NONBLOCK 0
    static ssize_t splice(int a, void* b, int c, void* d, size_t e, unsigned f) { errno = ENOSYS; return -1; }
    static ssize_t sendfile(int a, int b, off_t* c, size_t d) { errno = ENOSYS; return -1; }
    #endif
    """
    bint RINGMAIN_HAS_SPLICE
    unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    ctypedef long off_t
    ssize_t splice(int source, void* source_offset, int destination, void* destination_offset, size_t size,
                   unsigned int flags) nogil
    ssize_t sendfile(int destination, int source, off_t* offset, size_t size) nogil
    short POLLIN, POLLOUT
    unsigned long FIONREAD
    int ioctl(int fd, unsigned long request, void* value)
    enum:
        MSG_DONTWAIT
    ssize_t recv(int fd, void* buffer, size_t size, int flags) nogil
