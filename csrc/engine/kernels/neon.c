#include "kernels.h"

#if defined(__aarch64__)
#define SIMD_NEON
#define KERNELS mamba_kernels_neon
#define NAME "neon"
#include "vector.inc"
#endif
