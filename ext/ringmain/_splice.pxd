# cython: language_level=3
# The system calls of a pump, and of who waits for it; where splice(2), sendfile(2) and ppoll(2) do not exist they fail
# with ENOSYS.

from libc.math cimport fmax, modf

from ringmain._clock cimport monotonic

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <time.h>
    #ifdef __linux__
    #include <sys/sendfile.h>
    #define RINGMAIN_HAS_SPLICE 1
    #else
    #define RINGMAIN_HAS_SPLICE 0
    #define SPLICE_F_MOVE 0
    #define SPLICE_F_NONBLOCK 0
    static ssize_t splice(int a, void* b, int c, void* d, size_t e, unsigned f) { errno = ENOSYS; return -1; }
    static ssize_t sendfile(int a, int b, off_t* c, size_t d) { errno = ENOSYS; return -1; }
    static int ppoll(struct pollfd* a, nfds_t b, const struct timespec* c, const void* d) { errno = ENOSYS; return -1; }
    #endif
    """
    bint RINGMAIN_HAS_SPLICE
    unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    ctypedef long off_t
    ssize_t splice(int source, void* source_offset, int destination, void* destination_offset, size_t size,
                   unsigned int flags) nogil
    ssize_t sendfile(int destination, int source, off_t* offset, size_t size) nogil
    struct pollfd:
        int fd
        short events, revents
    struct timespec:
        long tv_sec, tv_nsec
    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, const void* mask) nogil
    short POLLIN, POLLOUT
    unsigned long FIONREAD
    int ioctl(int fd, unsigned long request, void* value)
    enum:
        MSG_DONTWAIT
    ssize_t recv(int fd, void* buffer, size_t size, int flags) nogil


cdef inline int poll_until(pollfd* fds, unsigned long count, double due) noexcept nogil:
    """Wait until one of these is ready, or until a time on the monotonic clock; 0: for ever. The result is ppoll's."""
    cdef timespec timeout
    cdef double seconds
    if due > 0:
        timeout.tv_nsec = <long>(modf(fmax(due - monotonic(), 0), &seconds) * 1e9)
        timeout.tv_sec = <long>seconds
    return ppoll(fds, count, &timeout if due > 0 else NULL, NULL)
