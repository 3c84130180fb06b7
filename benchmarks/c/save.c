/* Send standard input on one connection: save sendfile|splice|feed PORT
 *
 * sendfile  from a file
 * splice    from a pipe, enlarged to 1 MiB
 * feed      not a contender: from a file to standard output, a pipe, for those contenders that read one
 */
#include "common.h"
#include <sys/sendfile.h>

int main(int argc, char **argv) {
    if (argc != 3)
        return fputs("usage: save sendfile|splice|feed PORT\n", stderr), 2;
    size_t total = 0, writes = 0;
    ssize_t size;
    int from_file = strcmp(argv[1], "sendfile") == 0, feeding = strcmp(argv[1], "feed") == 0;
    int fd = feeding ? 1 : connect_to(atoi(argv[2]));
    if (!from_file)
        fcntl(feeding ? 1 : 0, F_SETPIPE_SZ, 1 << 20);
    for (;;) {
        size = from_file ? sendfile(fd, 0, NULL, 1 << 20) : splice(0, NULL, fd, NULL, 1 << 20, SPLICE_F_MOVE);
        if (size <= 0)
            break;
        total += size;
        writes++;
    }
    if (size < 0)
        fail("save");
    if (!feeding)
        finish(fd);
    report("{\"bytes\": %zu, \"reads\": %zu}", total, writes);
    return 0;
}
