/* Send BYTES of the pattern and take what the peer sends, both at once: duplex accept|connect PORT BYTES
 *
 * Reports the bytes that came, when the connection stood and when the last byte had come.
 */
#include "common.h"
#include <pthread.h>

static int fd;
static size_t total;

static void *send_all(void *unused) {
    static char pass[PASS];
    fill(pass, 1);
    for (size_t sent = 0; sent < total; sent += PASS) {
        stamp(pass, sent / PASS);
        write_all(fd, pass, MIN(PASS, total - sent));
    }
    shutdown(fd, SHUT_WR);
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return fputs("usage: duplex accept|connect PORT BYTES\n", stderr), 2;
    int port = atoi(argv[2]);
    pthread_t thread;
    total = strtoull(argv[3], NULL, 10);
    fd = strcmp(argv[1], "accept") == 0 ? accept_at(port) : connect_to(port);
    double start = now();
    if (pthread_create(&thread, NULL, send_all, NULL) != 0)
        fail("pthread_create");
    struct taken taken = take_all(fd, 0, 1);
    pthread_join(thread, NULL);
    report("{\"bytes\": %zu, \"start\": %.9f, \"end\": %.9f, \"bad\": %d}", taken.bytes, start, taken.end, taken.bad);
    return taken.bad;
}
