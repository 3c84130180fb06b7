/* Pass one stream on to standard output, a pipe: pipe readwrite|splice|mark PORT
 *
 * readwrite  blocking read and write of 64 KiB
 * splice     the pipe enlarged to 1 MiB, blocking splice
 * mark       the same with the low-water mark at 512 KiB: the least CPU that this can take
 */
#include "common.h"

int main(int argc, char **argv) {
    if (argc != 3)
        return fputs("usage: pipe readwrite|splice|mark PORT\n", stderr), 2;
    static char buffer[64 << 10];
    size_t total = 0, reads = 0;
    ssize_t size;
    int fd = accept_at(atoi(argv[2])), copying = strcmp(argv[1], "readwrite") == 0;
    if (!copying)
        fcntl(1, F_SETPIPE_SZ, 1 << 20);
    if (strcmp(argv[1], "mark") == 0)
        set_mark(fd, 512 << 10);
    for (;;) {
        size = copying ? read(fd, buffer, sizeof buffer) : splice(fd, NULL, 1, NULL, 1 << 20, SPLICE_F_MOVE);
        if (size <= 0)
            break;
        if (copying)
            write_all(1, buffer, size);
        total += size;
        reads++;
    }
    if (size < 0)
        fail("pipe");
    report("{\"bytes\": %zu, \"reads\": %zu}", total, reads);
    return 0;
}
