/* The loops in which nearly all the time goes. Each instruction set has a table of its own; the
 * scalar one is the oracle for the others.
 *
 * Activations are row-major: a row is a token, its channels contiguous and padded to a multiple of
 * PAD floats. `stride` is the distance between rows, in floats. Kernels write padding lanes of
 * their results, and no sum reads padding lanes. Arrays do not overlap unless a kernel says that it
 * works in place. The bits of a row depend on that row alone (in scans and convolutions also on the
 * rows before it), never on how many rows a call has. Kernels run in the mode of denormals.h.
 *
 * A result that depends on a NaN, an infinity or a sum that overflows is NaN or infinity, also
 * where the limit of the function is a number, as silu(-infinity) = 0 and 1 / sqrt(infinity) = 0.
 * So the check of the logits notices an overflow anywhere before them. Only a decay exp2(-infinity)
 * is 0.
 *
 *     V(n)        a vector of n floats, padded to a multiple of PAD
 *     T(rows, n)  a table of such vectors
 *     P(out, in)  a matrix in panels of PAD outputs: docs/format.md */
#ifndef MAMBA_ENGINE_KERNELS_H
#define MAMBA_ENGINE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>

enum { PAD = 16 };      /* whole vectors of any instruction set, as in the file */
enum { MAX_CONV = 16 }; /* largest d_conv */

/* The weights of a linear map: bias + W x. */
struct linear {
    const float *weight; /* P(out, in) */
    const float *bias;   /* one V(out) per row; NULL for 0, then bias_stride is 0 */
    size_t bias_stride;  /* 0: the same bias for all rows */
    size_t in, out;
};

/* One summand of a weighted sum of rows. */
struct tap {
    const float *weight, *x; /* [stride] each */
};

/* The steps of conv_silu and scan: step s works on token s or, reversed, on token length - 1 - s.
 * Rows stay in token order either way. */
struct sequence {
    size_t length; /* tokens */
    size_t stride; /* d_inner, padded */
    bool reverse;
};

struct scan_inputs {
    const float *u;     /* [length, stride] the convolution's output */
    const float *z;     /* [length, stride] the gate, before its SiLU */
    const float *delta; /* [length, stride] step sizes, after softplus */
    const float *b;     /* [length, d_state], rows bc_stride apart */
    const float *c;     /* [length, d_state], rows bc_stride apart */
    size_t bc_stride;
    const float *a; /* free: T(d_state, d_inner); tied: V(d_inner); times log2(e) */
    const float *d; /* V(d_inner) */
    size_t d_state;
    bool tied;
};

struct mamba_kernels {
    char name[8]; /* an array: a pointer needs a relocation, which makes ./mamba larger */

    /* y [rows, out] = bias + W x, row by row, for x [rows, in]. The bias may be y itself. */
    void (*matmul)(float *y, size_t y_stride, const float *x, size_t x_stride, size_t rows,
                   const struct linear *linear);

    /* scale [rows] = 1 / sqrt(mean(x^2) + eps) of the rows of x [rows, n]. */
    void (*rms_scale)(float *scale, const float *x, size_t x_stride, size_t rows, size_t n,
                      float eps);

    /* Row r of y [rows, n] = scale[r] times row r of x; n a multiple of PAD; y may be x. */
    void (*scale_rows)(float *y, size_t y_stride, const float *x, size_t x_stride,
                       const float *scale, size_t rows, size_t n);

    /* y [stride] = bias + the sum of weight * x over n taps, lane by lane. */
    void (*weighted_sum)(float *y, const float *bias, const struct tap *taps, size_t n,
                         size_t stride);

    /* y [length, stride] = silu(bias + causal depthwise convolution of x [length, stride]).
     * weight is T(d_conv, d_inner), row k for the input d_conv - 1 - k steps back. */
    void (*conv_silu)(float *y, const float *x, const float *weight, const float *bias,
                      size_t d_conv, struct sequence sequence);

    /* y [n] += x [n]; n a multiple of PAD. */
    void (*add)(float *y, const float *x, size_t n);

    /* In place on x [n]; n a multiple of PAD. */
    void (*silu)(float *x, size_t n);
    void (*softplus)(float *x, size_t n);

    /* y [length, stride]: the selective scan, the skip through D and the gate silu(z).
     * state [d_state, PAD] is scratch memory. */
    void (*scan)(float *y, const struct scan_inputs *inputs, float *state,
                 struct sequence sequence);
};

/* Each exists only on its own processors. */
extern const struct mamba_kernels mamba_kernels_scalar, mamba_kernels_avx2, mamba_kernels_avx512,
    mamba_kernels_neon, mamba_kernels_simd128;

/* Returns the kernels of the instruction set `wanted`, or the fastest that work here if it is NULL
 * or ""; NULL if `wanted` is unknown or does not work here. */
const struct mamba_kernels *mamba_choose_kernels(const char *wanted);

/* Registers that tell what an x86 processor and its operating system can do: of CPUID's leaves 1
 * and 7, and of XGETBV. 0 where there is no such leaf or instruction. */
struct mamba_x86 {
    unsigned ecx_1, ebx_7, xcr0;
};

/* The choice of mamba_choose_kernels for a given processor. */
const struct mamba_kernels *mamba_choose_x86_kernels(struct mamba_x86 cpu, const char *wanted);

#endif
