/* A wall clock that jumps: CLOCK_REALTIME, time and gettimeofday are off by the seconds that the first eight bytes of
   CLOCK_FILE hold, a signed number that may change at any moment. Other clocks, and the file system's, are true. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("CLOCK_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) offset = found;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *when) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, when);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) when->tv_sec += *offset;
    return failed;
}

time_t time(time_t *out) {
    struct timespec when;
    clock_gettime(CLOCK_REALTIME, &when);
    if (out) *out = when.tv_sec;
    return when.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec when;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &when);
    out->tv_sec = when.tv_sec;
    out->tv_usec = when.tv_nsec / 1000;
    return 0;
}
