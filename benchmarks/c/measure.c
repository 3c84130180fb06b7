/* Run a command and tell what it cost: measure REPORT COMMAND...
 *
 * Writes the resources of the command, of wait4(2), to REPORT as JSON and ends with its exit code. A small process does
 * this because a child's peak memory begins with that of whoever forked it.
 */
#include "common.h"
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <signal.h>

static double seconds(struct timeval time) { return time.tv_sec + time.tv_usec * 1e-6; }

int main(int argc, char **argv) {
    if (argc < 3)
        return fputs("usage: measure REPORT COMMAND...\n", stderr), 2;
    struct rusage usage;
    int status;
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execvp(argv[2], argv + 2);
        fail(argv[2]);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) < 0)
        fail("measure");
    setenv("BENCH_REPORT", argv[1], 1);
    report("{\"user\": %.6f, \"system\": %.6f, \"peak\": %ld, \"waits\": %ld, \"preempted\": %ld}",
           seconds(usage.ru_utime), seconds(usage.ru_stime), usage.ru_maxrss * 1024, usage.ru_nvcsw, usage.ru_nivcsw);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
