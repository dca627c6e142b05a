/* The few loops in which all the time goes, behind one table, so that each instruction set can
 * bring its own and the scalar ones stay as the oracle.
 *
 * Activations are row-major; a row is one token, its channels contiguous, padded to a
 * multiple of PAD floats. `stride` is a row's padded length. Padding lanes of results are written
 * and never read by a sum. Arrays do not overlap unless a kernel says that it works in place. What
 * is computed for a row depends on that row alone (in scans and convolutions: on the rows before it
 * too), never on how many rows a call has. */
#ifndef MAMBA_ENGINE_KERNELS_H
#define MAMBA_ENGINE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>

enum { PAD = 16 };      /* as in the file: whole vectors of any instruction set */
enum { MAX_CONV = 16 }; /* largest d_conv */

/* What conv_silu and scan have in common: the order of the steps. Step s works on token s, or,
 * reversed, on token length - 1 - s; rows of results stay in token order. */
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
    const float *c;     /* [length, d_state], rows bc_stride apart: the C of the paper */
    size_t bc_stride;
    const float *a; /* [d_state, stride], or [1, stride] if tied; times log2(e) */
    const float *d; /* [stride] */
    size_t d_state;
    bool tied;
};

struct tap {
    const float *weight, *x; /* [stride] each */
};

struct mamba_kernels {
    const char *name;

    /* y [rows, out] = start + W x for x [rows, in]. W is P(out, in); start's rows are V(out),
     * start_stride apart, 0 for a bias. start may be y, or NULL for 0. */
    void (*matmul)(float *y, size_t y_stride, const float *x, size_t x_stride, const float *weight,
                   const float *start, size_t start_stride, size_t rows, size_t in, size_t out);

    /* scale [rows] = 1 / sqrt(mean(x^2) + eps) of the rows of x [rows, n]. */
    void (*rms_scale)(float *scale, const float *x, size_t x_stride, size_t rows, size_t n,
                      float eps);

    /* Row r of y [rows, n] = scale[r] times row r of x, n a multiple of PAD; y may be x. */
    void (*scale_rows)(float *y, size_t y_stride, const float *x, size_t x_stride,
                       const float *scale, size_t rows, size_t n);

    /* y [stride] = bias + the sum of weight * x over n taps, lane by lane. */
    void (*weighted_sum)(float *y, const float *bias, const struct tap *taps, size_t n,
                         size_t stride);

    /* y [length, stride] = silu(bias + causal depthwise convolution of x [length, stride]).
     * weight is T(d_conv, d_inner), row k for the input d_conv - 1 - k steps back. */
    void (*conv_silu)(float *y, const float *x, const float *weight, const float *bias,
                      size_t d_conv, struct sequence sequence);

    /* y [n] += x [n], n a multiple of PAD. */
    void (*add)(float *y, const float *x, size_t n);

    /* In place on x [n], n a multiple of PAD. */
    void (*silu)(float *x, size_t n);
    void (*softplus)(float *x, size_t n);

    /* y [length, stride]: the selective scan, the skip through D and the gate silu(z).
     * state [d_state, PAD] is scratch. */
    void (*scan)(float *y, const struct scan_inputs *inputs, float *state,
                 struct sequence sequence);
};

/* Those of other instruction sets exist on their processors only. */
extern const struct mamba_kernels mamba_kernels_scalar, mamba_kernels_avx2, mamba_kernels_avx512,
    mamba_kernels_neon;

/* The fastest kernels that work here, or those of the instruction set `wanted`; NULL if it is none
 * or does not work here. */
const struct mamba_kernels *mamba_choose_kernels(const char *wanted);

#endif
