/* How long a message takes through others: probe PORT COUNT SIZE GAP [echo]
 *
 * Sends COUNT messages of SIZE bytes to PORT of the loopback, or to standard output for port 0, each once the last one
 * has come back and GAP microseconds have passed. They come back by standard input, or with "echo" by the same
 * connection. Reports the times in microseconds.
 */
#include "common.h"

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6)
        return fputs("usage: probe PORT COUNT SIZE GAP [echo]\n", stderr), 2;
    int port = atoi(argv[1]), count = atoi(argv[2]), size = atoi(argv[3]), on = 1;
    useconds_t gap = atoi(argv[4]);
    char *sent = calloc(1, size), *seen = calloc(1, size), *text = malloc(count * 16 + 1);
    size_t length = 0;
    int fd = port ? connect_to(port) : 1, back = argc == 6 ? fd : 0;
    if (port)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    usleep(200000);
    for (int turn = 0; turn < count; turn++) {
        memset(sent, 'a' + turn % 26, size);
        if (gap) /* a sleep of nothing takes some 50 µs, and the core from those who are to be measured */
            usleep(gap);
        double start = now();
        write_all(fd, sent, size);
        for (int got = 0; got < size;) {
            ssize_t part = read(back, seen + got, size - got);
            if (part <= 0)
                fail("probe");
            got += part;
        }
        length += snprintf(text + length, 16, "%s%.1f", turn ? ", " : "", (now() - start) * 1e6);
        if (memcmp(sent, seen, size) != 0)
            return fputs("probe: other bytes came back\n", stderr), 1;
    }
    report("{\"latencies\": [%s]}", text);
    return 0;
}
