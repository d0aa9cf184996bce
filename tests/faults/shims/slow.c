/* A slow disk: fsync and fdatasync take SLOW_SYNC_MS longer, and opening a file whose path begins with SLOW_PATH takes
   SLOW_OPEN_MS longer, after it was opened. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void pause_for(const char *name) {
    const char *text = getenv(name);
    if (text) usleep(1000 * (useconds_t)atoi(text));
}

static int opened(int fd, const char *path) {
    const char *slow = getenv("SLOW_PATH");
    if (fd >= 0 && slow && path && strncmp(path, slow, strlen(slow)) == 0) pause_for("SLOW_OPEN_MS");
    return fd;
}

int fsync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    pause_for("SLOW_SYNC_MS");
    return real(fd);
}

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    pause_for("SLOW_SYNC_MS");
    return real(fd);
}

int open(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    va_list rest;
    mode_t mode;
    va_start(rest, flags);
    mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(real(path, flags, mode), path);
}

int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    va_list rest;
    mode_t mode;
    va_start(rest, flags);
    mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(real(path, flags, mode), path);
}
