/* Relay both ways between one client and a server: relay splice|mark PORT TO
 *
 * A thread for each direction: blocking splice into a pipe of 1 MiB and out of it, the end passed on alone.
 * mark   the same with the low-water mark of what is read at 512 KiB
 */
#include "common.h"
#include <pthread.h>

struct way {
    int from, to;
    size_t total, reads;
};

static void *pass_on(void *argument) {
    struct way *way = argument;
    int ends[2];
    ssize_t size, moved;
    if (pipe2(ends, O_CLOEXEC) < 0)
        fail("pipe2");
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
    while ((size = splice(way->from, NULL, ends[1], NULL, 1 << 20, SPLICE_F_MOVE)) > 0) {
        way->total += size;
        way->reads++;
        for (; size > 0; size -= moved)
            if ((moved = splice(ends[0], NULL, way->to, NULL, size, SPLICE_F_MOVE)) <= 0)
                fail("splice");
    }
    if (size < 0)
        fail("splice");
    shutdown(way->to, SHUT_WR);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return fputs("usage: relay splice|mark PORT TO\n", stderr), 2;
    int client = accept_at(atoi(argv[2])), server = connect_to(atoi(argv[3])), on = 1;
    struct way there = {.from = client, .to = server}, back = {.from = server, .to = client};
    pthread_t thread;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (strcmp(argv[1], "mark") == 0)
        set_mark(client, 512 << 10);
    if (pthread_create(&thread, NULL, pass_on, &back) != 0)
        fail("pthread_create");
    pass_on(&there);
    pthread_join(thread, NULL);
    report("{\"bytes\": %zu, \"reads\": %zu}", there.total, there.reads);
    return 0;
}
