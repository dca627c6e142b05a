#include "kernels.h"

#if defined(__x86_64__)
#define SIMD_AVX512
#define KERNELS mamba_kernels_avx512
#define NAME "avx512"
#include "vector.inc"
#endif
