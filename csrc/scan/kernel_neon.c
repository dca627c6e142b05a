/* The training kernels for NEON. */
#if defined(__aarch64__)
#define SIMD_NEON
#define KERNELS mamba_scan_kernels_neon
#include "kernel.inc"
#else
typedef int scan_kernels_neon_are_for_another_machine;
#endif
