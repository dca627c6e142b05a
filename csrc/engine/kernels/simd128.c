#include "kernels.h"

#if defined(__wasm_simd128__)
#define SIMD_WASM
#define KERNELS mamba_kernels_simd128
#define NAME "simd128"
#include "vector.inc"
#endif
