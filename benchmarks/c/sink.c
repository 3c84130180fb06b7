/* The far end of every contender that passes one stream on: sink pipe, sink lines, or sink PORT
 *
 * Takes all that comes by standard input, a pipe, or by one connection to PORT of the loopback. Lines of many connections
 * come in no order, so they are only counted. Reports the bytes, when the connection stood and when the last byte had
 * come.
 */
#include "common.h"

int main(int argc, char **argv) {
    if (argc != 2)
        return fputs("usage: sink pipe|lines|PORT\n", stderr), 2;
    int is_pattern = strcmp(argv[1], "lines") != 0, is_pipe = !is_pattern || strcmp(argv[1], "pipe") == 0;
    int fd = is_pipe ? 0 : accept_at(atoi(argv[1]));
    double start = now();
    struct taken taken = take_all(fd, is_pipe, is_pattern);
    report("{\"bytes\": %zu, \"start\": %.9f, \"end\": %.9f, \"reads\": %zu, \"bad\": %d}", taken.bytes, start,
           taken.end, taken.reads, taken.bad);
    return taken.bad;
}
