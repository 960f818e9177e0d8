/* A wall clock that is off by the seconds in the file OTHER_CLOCK, for a process that preloads this.
 *
 * libfaketime does it too, but slows waits and clock calls so much that it cannot be measured with.
 * The file holds one int64 of the machine's own byte order and may change at any time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static const volatile int64_t *off_s;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void open_file(void) {
    int file = open(getenv("OTHER_CLOCK"), O_RDONLY);
    void *map = mmap(NULL, sizeof *off_s, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) abort();
    off_s = map;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && off_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *off_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    if (clock_gettime(CLOCK_REALTIME, &t)) return -1;
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec t;
    if (clock_gettime(CLOCK_REALTIME, &t)) return -1;
    if (now) *now = t.tv_sec;
    return t.tv_sec;
}
