/* The training kernels in float64, for gradient checks. */
#define SIMD_DOUBLE
#define KERNELS mamba_scan_kernels_double
#include "kernel.inc"
