/* Merge the lines of many connections and drop them: merge PORT CONNECTIONS
 *
 * An epoll loop that reads once from each connection that is ready, behind what there is of a line, and keeps what is
 * behind the last newline for the next time: what a careful C programmer writes. The buffer stays in the cache.
 * With BENCH_COPY set the lines are written to standard output, for others to compare, and counted.
 */
#include "common.h"
#include <sys/epoll.h>

#define ROOM ((size_t)256 << 10) /* of one read */
#define BATCH 1024

struct peer {
    int fd;
    char *carry; /* what there is of a line */
    size_t size, capacity;
};

static size_t total, reads, lines;
static int copying;

static void listen_to(int epoll, int port, int count) {
    struct sockaddr_in address = loopback(port);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BATCH) < 0)
        fail("listen");
    struct peer *peers = calloc(count, sizeof *peers);
    for (int number = 0; number < count; number++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &peers[number]};
        peers[number].fd = accept(listener, NULL, NULL);
        if (peers[number].fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, peers[number].fd, &event) < 0)
            fail("accept");
    }
    close(listener);
}

static void keep(struct peer *peer, const char *rest, size_t size) {
    if (size > peer->capacity) {
        peer->capacity = 2 * size;
        peer->carry = realloc(peer->carry, peer->capacity);
    }
    memcpy(peer->carry, rest, size);
    peer->size = size;
}

/* Read once; tell whether the connection goes on. */
static int serve(struct peer *peer) {
    static char *buffer;
    static size_t capacity;
    if (peer->size + ROOM > capacity) {
        capacity = 2 * (peer->size + ROOM);
        buffer = realloc(buffer, capacity);
    }
    ssize_t size = recv(peer->fd, buffer + peer->size, ROOM, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN)
        return 1;
    if (size < 0)
        fail("recv");
    if (size == 0)
        return 0;
    total += size;
    reads++;
    memcpy(buffer, peer->carry, peer->size);
    char *seen = buffer + peer->size, *end = seen + size, *newline = memrchr(seen, '\n', size);
    char *whole = newline ? newline + 1 : buffer;
    if (copying) {
        for (char *at = buffer; at < whole; at = (char *)memchr(at, '\n', whole - at) + 1)
            lines++;
        write_all(1, buffer, whole - buffer);
    }
    keep(peer, whole, end - whole);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return fputs("usage: merge PORT CONNECTIONS\n", stderr), 2;
    int left = atoi(argv[2]), epoll = epoll_create1(0);
    struct epoll_event events[BATCH];
    more_descriptors();
    copying = getenv("BENCH_COPY") != NULL;
    listen_to(epoll, atoi(argv[1]), left);
    while (left > 0) {
        int ready = epoll_wait(epoll, events, BATCH, -1);
        for (int index = 0; index < ready; index++) {
            struct peer *peer = events[index].data.ptr;
            if (!serve(peer)) {
                close(peer->fd);
                left--;
            }
        }
    }
    report("{\"bytes\": %zu, \"reads\": %zu, \"lines\": %zu, \"end\": %.9f}", total, reads, lines, now());
    return 0;
}
