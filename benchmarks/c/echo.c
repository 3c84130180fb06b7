/* Send back what one client sends, as it comes: echo PORT */
#include "common.h"

int main(int argc, char **argv) {
    if (argc != 2)
        return fputs("usage: echo PORT\n", stderr), 2;
    static char buffer[64 << 10];
    int fd = accept_at(atoi(argv[1])), on = 1;
    ssize_t size;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while ((size = read(fd, buffer, sizeof buffer)) > 0)
        write_all(fd, buffer, size);
    return 0;
}
