#include "kernels.h"

#if defined(__x86_64__)
#define SIMD_AVX2
#define KERNELS mamba_kernels_avx2
#define NAME "avx2"
#include "vector.inc"
#endif
