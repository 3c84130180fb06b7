/* Receive one stream and drop it: receive read|drain PORT
 *
 * read   a loop of blocking reads into 64 KiB, what a careful C programmer writes first
 * drain  the low-water mark at 1 MiB, poll, then read until there is no more: the least CPU that reading can take
 * With BENCH_COPY set everything is written to standard output, for others to compare.
 */
#include "common.h"

static size_t total, reads;
static int copying;

static ssize_t receive(int fd, char *buffer, size_t capacity, int flags) {
    ssize_t size = recv(fd, buffer, capacity, flags);
    if (size > 0) {
        total += size;
        reads++;
        if (copying)
            write_all(1, buffer, size);
    }
    return size;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return fputs("usage: receive read|drain PORT\n", stderr), 2;
    static char buffer[256 << 10] __attribute__((aligned(4096)));
    ssize_t size;
    int drain = strcmp(argv[1], "drain") == 0;
    copying = getenv("BENCH_COPY") != NULL;
    int fd = accept_at(atoi(argv[2]));
    if (!drain) {
        while ((size = receive(fd, buffer, 64 << 10, 0)) > 0)
            ;
    } else {
        set_mark(fd, 1 << 20);
        do {
            struct pollfd ready = {.fd = fd, .events = POLLIN};
            poll(&ready, 1, -1);
            while ((size = receive(fd, buffer, sizeof buffer, MSG_DONTWAIT)) == sizeof buffer)
                ;
        } while (size > 0 || (size < 0 && errno == EAGAIN));
    }
    if (size < 0)
        fail("recv");
    report("{\"bytes\": %zu, \"reads\": %zu}", total, reads);
    return 0;
}
