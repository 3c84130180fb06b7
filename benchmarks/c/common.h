/* What the baselines share: the pattern that every stream consists of, sockets on the loopback, and reports.
 *
 * A stream is a sequence of passes of 1 MiB: newline-delimited JSON, always the same but for the number of the pass in
 * its first 24 bytes. So a lost, repeated or misplaced byte shows wherever the number is looked at.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define PASS ((size_t)1 << 20)
#define STAMP 24
#define MIN(a, b) ((a) < (b) ? (a) : (b))

__attribute__((unused)) static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Seconds on the monotonic clock, which all processes share. */
__attribute__((unused)) static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* Write a pass's number over its first STAMP bytes. */
__attribute__((unused)) static void stamp(char *pass, unsigned long long number) {
    char text[STAMP + 1];
    snprintf(text, sizeof text, "{\"pass\":%016llx", number);
    memcpy(pass, text, STAMP);
}

/* Fill a buffer with `count` passes. */
__attribute__((unused)) static void fill(char *buffer, size_t count) {
    char line[256];
    for (size_t pass = 0; pass < count; pass++) {
        char *start = buffer + pass * PASS;
        size_t offset = 0;
        for (unsigned number = 0; offset < PASS; number++) {
            int size = snprintf(line, sizeof line,
                                "{\"pass\":%016x,\"event_type\":\"flow\",\"flow_id\":%u,\"src_ip\":\"192.0.2.%u\","
                                "\"dest_port\":%u,\"bytes\":%u}\n",
                                number, number * 7919u, number % 254 + 1, number % 65536, number * 31 % 100003);
            memcpy(start + offset, line, MIN((size_t)size, PASS - offset));
            offset += size;
        }
        start[PASS - 1] = '\n';
        stamp(start, pass);
    }
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

__attribute__((unused)) static int connect_to(int port) {
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    return fd;
}

/* Wait for one client. */
__attribute__((unused)) static int accept_at(int port) {
    struct sockaddr_in address = loopback(port);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0)
        fail("listen");
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        fail("accept");
    close(listener);
    return fd;
}

/* Have as many descriptors as one may. */
__attribute__((unused)) static void more_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

__attribute__((unused)) static void set_mark(int fd, int mark) {
    if (setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark) < 0)
        fail("SO_RCVLOWAT");
}

/* Send FIN and wait until the peer has read everything and closed. */
__attribute__((unused)) static void finish(int fd) {
    char rest[4096];
    shutdown(fd, SHUT_WR);
    while (read(fd, rest, sizeof rest) > 0)
        ;
}

__attribute__((unused)) static void write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t written = write(fd, data, size);
        if (written < 0)
            fail("write");
        data += written;
        size -= written;
    }
}

struct taken {
    size_t bytes, reads;
    double end; /* when the last byte had come */
    int bad;    /* another byte than was to be expected */
};

/* Take all that a socket or pipe brings, as cheaply as possible: pipes are spliced to /dev/null, what a socket brings is
 * dropped unread, half a MiB at a time. Of the pattern the first 24 bytes of every 16 MiB are read and must bear the
 * number of their pass.
 */
__attribute__((unused)) static struct taken take_all(int fd, int is_pipe, int is_pattern) {
    static const size_t check = (size_t)16 << 20;
    struct taken taken = {.end = now()};
    int devnull = open("/dev/null", O_WRONLY);
    if (!is_pipe) /* it would be woken up for a packet else, and that takes the contender's time too */
        set_mark(fd, 512 << 10);
    for (;;) {
        char seen[STAMP], expected[STAMP];
        size_t offset = taken.bytes % check, wanted = MIN(PASS, check - offset);
        ssize_t size;
        if (is_pattern && offset < STAMP) {
            size = read(fd, seen, STAMP - offset);
            stamp(expected, taken.bytes / PASS);
            if (size > 0 && memcmp(seen, expected + offset, size) != 0)
                taken.bad = 1;
        } else if (is_pipe) {
            size = splice(fd, NULL, devnull, NULL, wanted, SPLICE_F_MOVE);
        } else {
            size = recv(fd, NULL, wanted, MSG_TRUNC);
        }
        if (size < 0)
            fail("read");
        if (size == 0)
            break;
        taken.bytes += size;
        taken.reads++;
        taken.end = now();
    }
    close(devnull);
    return taken;
}

/* Write one JSON object to the file that BENCH_REPORT names, if it names one. */
__attribute__((unused, format(printf, 1, 2))) static void report(const char *format, ...) {
    const char *path = getenv("BENCH_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    va_list arguments;
    if (!file)
        return;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    if (fclose(file) != 0)
        fail(path);
}
