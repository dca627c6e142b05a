/* The training kernels in plain C: for any machine, and the oracle of the others. */
#define SIMD_SCALAR
#define KERNELS mamba_scan_kernels_scalar
#include "kernel.inc"
