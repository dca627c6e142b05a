/* The tile of a matrix product c = a b that stays in registers over the whole depth: GEMM_ROWS rows
 * times GEMM_VECTORS vectors, as many as the register file holds together with one row of b and one
 * element of a. Define SIMD_... (simd.h) before the include. */
#ifndef MAMBA_SIMD_GEMM_TILE_H
#define MAMBA_SIMD_GEMM_TILE_H

#include "simd.h"

#if defined(SIMD_WASM)
enum { GEMM_ROWS = 3, GEMM_VECTORS = 4 }; /* of the 16 registers that x86-64 has */
#elif defined(SIMD_AVX512) || defined(SIMD_NEON)
enum { GEMM_ROWS = 6, GEMM_VECTORS = 4 }; /* of 32 registers */
#else
enum { GEMM_ROWS = 6, GEMM_VECTORS = 2 }; /* of 16 */
#endif

/* a[r, k] = data[r * row + k * column]: a matrix, or its transpose. */
struct matrix_view {
    const REAL *data;
    ptrdiff_t row;
    ptrdiff_t column;
};

/* c (rows, vectors * LANES) = start + a b, for a (rows, depth). Vector v of row k of b is at
 * b + k * b_row + v * b_vector. Rows of start are start_row apart (0: every row starts with the
 * same values); NULL means zeros; it may be c. rows and vectors are constants where it is called.
 */
static inline __attribute__((always_inline)) void gemm_tile(int rows, int vectors, ptrdiff_t depth,
                                                            struct matrix_view a, const REAL *b,
                                                            ptrdiff_t b_row, ptrdiff_t b_vector,
                                                            const REAL *start, ptrdiff_t start_row,
                                                            REAL *c, ptrdiff_t c_row)
{
    vreal sum[GEMM_ROWS][GEMM_VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sum[r][v] = v_set1(0);
            if (start)
                sum[r][v] = v_load(start + r * start_row + v * LANES);
        }
    }
    for (ptrdiff_t k = 0; k < depth; k++) {
        vreal row[GEMM_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            row[v] = v_load(b + k * b_row + v * b_vector);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const vreal element = v_set1(a.data[r * a.row + k * a.column]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                sum[r][v] = v_fma(element, row[v], sum[r][v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            v_store(c + r * c_row + v * LANES, sum[r][v]);
    }
}

#endif
