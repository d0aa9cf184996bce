/* fsync and fdatasync do nothing: the negative control of the power cut. With NOSYNC_SPARES, files whose path holds that
   word are written out all the same. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int spared(int fd) {
    char link[64], path[4096];
    const char *word = getenv("NOSYNC_SPARES");
    ssize_t length;
    if (!word || !*word) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, word) != NULL;
}

static int sync_with(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return spared(fd) ? real(fd) : 0;
}

int fsync(int fd) { return sync_with("fsync", fd); }
int fdatasync(int fd) { return sync_with("fdatasync", fd); }
