/* The training kernels for AVX2 (compile with -mavx2 -mfma). */
#if defined(__x86_64__)
#define SIMD_AVX2
#define KERNELS mamba_scan_kernels_avx2
#include "kernel.inc"
#else
typedef int scan_kernels_avx2_are_for_another_machine;
#endif
