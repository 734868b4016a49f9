/* Loaded into a program (LD_PRELOAD), it lets a test set that program's clock: CLOCK_SHIFT names a file with the seconds
   by which it is ahead. Other clocks, the monotonic one above all, go on as they are. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t which, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, which, now);
    const char *name = getenv("CLOCK_SHIFT");
    if (failed || which != CLOCK_REALTIME || name == NULL)
        return failed;
    char text[32] = {0};
    int file = open(name, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    if (read(file, text, sizeof text - 1) > 0)
        now->tv_sec += atol(text);
    close(file);
    return 0;
}
