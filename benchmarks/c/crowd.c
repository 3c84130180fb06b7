/* The source of many streams: crowd PORT BYTES CONNECTIONS
 *
 * Connects CONNECTIONS times to PORT of the loopback and sends lines of 400 bytes on all of them, in large writes, as fast
 * as they are taken; BYTES in all. A line begins with its connection's number and its own, in hexadecimal, so that a
 * lost, repeated or misplaced one shows. The last line of the first connection is as short as BYTES want it.
 * Reports when the connections stood and when the peer, having read everything, had closed them.
 */
#include "common.h"
#include <sys/epoll.h>

#define LINE ((size_t)400)
#define LINES ((size_t)640) /* of one write */
#define BATCH 1024

struct stream {
    int fd;
    size_t sent, total;
};

static char buffer[LINES * LINE];

static void write_number(char *at, size_t number, int digits) {
    while (digits-- > 0) {
        at[digits] = "0123456789abcdef"[number & 15];
        number >>= 4;
    }
}

/* Send once; tell whether there is more to be sent. */
static int serve(struct stream *stream, size_t number) {
    size_t first = stream->sent / LINE, offset = stream->sent % LINE;
    size_t size = MIN(sizeof buffer - offset, stream->total - stream->sent);
    for (size_t line = 0; line * LINE < offset + size; line++) {
        write_number(buffer + line * LINE, number, 4);
        write_number(buffer + line * LINE + 5, first + line, 10);
    }
    int last = stream->sent + size == stream->total;
    char kept = buffer[offset + size - 1];
    if (last)
        buffer[offset + size - 1] = '\n';
    ssize_t sent = send(stream->fd, buffer + offset, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    buffer[offset + size - 1] = kept;
    if (sent < 0 && errno != EAGAIN)
        fail("send");
    stream->sent += sent > 0 ? sent : 0;
    return stream->sent < stream->total;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return fputs("usage: crowd PORT BYTES CONNECTIONS\n", stderr), 2;
    size_t total = strtoull(argv[2], NULL, 10), count = strtoull(argv[3], NULL, 10);
    size_t share = total / count / LINE * LINE;
    struct stream *streams = calloc(count, sizeof *streams);
    struct epoll_event events[BATCH];
    int epoll = epoll_create1(0);
    more_descriptors();
    memset(buffer, '.', sizeof buffer);
    for (size_t line = 0; line < LINES; line++)
        buffer[line * LINE + LINE - 1] = '\n';
    for (size_t number = 0; number < count; number++) {
        struct epoll_event event = {.events = EPOLLOUT, .data.u64 = number};
        streams[number].fd = connect_to(atoi(argv[1]));
        streams[number].total = number ? share : total - (count - 1) * share;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, streams[number].fd, &event) < 0)
            fail("epoll_ctl");
    }
    double start = now();
    for (size_t left = count; left > 0;) {
        int ready = epoll_wait(epoll, events, BATCH, -1);
        for (int index = 0; index < ready; index++) {
            struct stream *stream = &streams[events[index].data.u64];
            if (!serve(stream, events[index].data.u64)) {
                epoll_ctl(epoll, EPOLL_CTL_DEL, stream->fd, NULL);
                shutdown(stream->fd, SHUT_WR);
                left--;
            }
        }
    }
    double written = now();
    for (size_t number = 0; number < count; number++)
        finish(streams[number].fd);
    report("{\"bytes\": %zu, \"start\": %.9f, \"written\": %.9f, \"end\": %.9f}", total, start, written, now());
    return 0;
}
