/* The source of every plain stream: send PORT BYTES MESSAGE RATE
 *
 * Connects to PORT of the loopback, or writes to standard output for port 0, and sends BYTES of the pattern in writes of
 * MESSAGE bytes (a power of two, at most 4 MiB), as fast as they are taken or, each in a packet of its own, at RATE bytes
 * a second (0: no limit).
 * Reports when the connection stood and when the peer, having read everything, had closed it.
 */
#include "common.h"
#include <sys/prctl.h>

static void pace(double due) {
    struct timespec time = {.tv_sec = (time_t)due};
    time.tv_nsec = (long)((due - time.tv_sec) * 1e9);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

int main(int argc, char **argv) {
    if (argc != 5)
        return fputs("usage: send PORT BYTES MESSAGE RATE\n", stderr), 2;
    int port = atoi(argv[1]);
    size_t total = strtoull(argv[2], NULL, 10), message = strtoull(argv[3], NULL, 10);
    double rate = strtod(argv[4], NULL);
    size_t passes = message > PASS ? message / PASS : 1, span = passes * PASS;
    char *buffer = aligned_alloc(4096, span);
    fill(buffer, passes);
    prctl(PR_SET_TIMERSLACK, 1000);
    int fd = port ? connect_to(port) : 1;
    int on = rate > 0; /* else TCP gathers small writes until the peer has acknowledged the last (RFC 896) */
    if (port && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        fail("TCP_NODELAY");
    double start = now();
    for (size_t sent = 0; sent < total;) {
        size_t offset = sent % span, size = MIN(message, total - sent);
        if (offset == 0)
            for (size_t pass = 0; pass < passes; pass++)
                stamp(buffer + pass * PASS, (sent + pass * PASS) / PASS);
        if (rate > 0)
            pace(start + sent / rate);
        write_all(fd, buffer + offset, size);
        sent += size;
    }
    double written = now();
    if (port)
        finish(fd);
    report("{\"bytes\": %zu, \"start\": %.9f, \"written\": %.9f, \"end\": %.9f}", total, start, written, now());
    return 0;
}
