/* The training kernels for AVX512 (compile with -mavx512f -mavx512dq -mfma). */
#if defined(__x86_64__)
#define SIMD_AVX512
#define KERNELS mamba_scan_kernels_avx512
#include "kernel.inc"
#else
typedef int scan_kernels_avx512_are_for_another_machine;
#endif
