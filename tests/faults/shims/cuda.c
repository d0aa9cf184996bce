/* A CUDA driver that is there and does not work: cuInit answers with CUDA_STATUS, 803 where it is not set ("system has
   unsupported display driver / cuda driver combination": the driver was updated and the computer not started again). */
#include <stdlib.h>

int cuInit(unsigned flags) {
    const char *status = getenv("CUDA_STATUS");
    (void)flags;
    return status ? atoi(status) : 803;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return 803;
}

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}
