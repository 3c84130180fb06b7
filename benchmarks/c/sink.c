/* The far end of every contender that passes bytes on: sink pipe, or sink PORT
 *
 * Takes all that comes by standard input, a pipe, or by one connection to PORT of the loopback, as cheaply as possible:
 * pipes are spliced to /dev/null, what a socket brings is dropped unread. The first 24 bytes of every 16 MiB are read
 * and must bear the number of their pass. Reports the bytes, when the connection stood and when the last byte had come.
 */
#include "common.h"

#define CHECK ((size_t)16 << 20)

static int devnull, is_pipe;

static ssize_t drop(int fd, size_t size) {
    if (is_pipe)
        return splice(fd, NULL, devnull, NULL, size, SPLICE_F_MOVE);
    return recv(fd, NULL, size, MSG_TRUNC);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return fputs("usage: sink pipe|PORT\n", stderr), 2;
    size_t total = 0, reads = 0;
    int bad = 0;
    is_pipe = strcmp(argv[1], "pipe") == 0;
    devnull = open("/dev/null", O_WRONLY);
    int fd = is_pipe ? 0 : accept_at(atoi(argv[1]));
    double start = now(), last = start;
    for (;;) {
        char seen[STAMP], expected[STAMP];
        size_t offset = total % CHECK;
        ssize_t size;
        if (offset < STAMP) {
            size = read(fd, seen, STAMP - offset);
            stamp(expected, total / PASS);
            if (size > 0 && memcmp(seen, expected + offset, size) != 0)
                bad = 1;
        } else {
            size = drop(fd, MIN(PASS, CHECK - offset));
        }
        if (size < 0)
            fail("sink");
        if (size == 0)
            break;
        total += size;
        reads++;
        last = now();
    }
    report("{\"bytes\": %zu, \"start\": %.9f, \"end\": %.9f, \"reads\": %zu, \"bad\": %d}", total, start, last, reads, bad);
    return bad;
}
