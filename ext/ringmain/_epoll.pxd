# cython: language_level=3
# What Linux tells of many descriptors at once: epoll(7). Where it is not to be had there is never a descriptor for it.

from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/epoll.h>
    #else
    #include <errno.h>
    #include <stdint.h>
    #define EPOLLIN 1
    #define EPOLLOUT 4
    #define EPOLL_CLOEXEC 0
    #define EPOLL_CTL_ADD 1
    #define EPOLL_CTL_DEL 2
    #define EPOLL_CTL_MOD 3
    typedef union epoll_data { int fd; } epoll_data_t;
    struct epoll_event { uint32_t events; epoll_data_t data; };
    static int epoll_create1(int flags) { errno = ENOSYS; return -1; }
    static int epoll_ctl(int fd, int operation, int other, struct epoll_event* event) { return -1; }
    static int epoll_wait(int fd, struct epoll_event* events, int most, int timeout) { return -1; }
    #endif
    """
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    unsigned int EPOLLIN, EPOLLOUT
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    int epoll_create1(int flags) nogil
    int epoll_ctl(int fd, int operation, int other, epoll_event* event) nogil
    int epoll_wait(int fd, epoll_event* events, int most, int timeout) nogil
