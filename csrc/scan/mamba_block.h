/* A whole residual block of a Mamba network, forward and backward. Each sequence goes through all
 * of it before the next one starts, so that everything between a block's input and its output
 * stays in the cache of the core that works on it.
 *
 *     hidden = input / rms(input) * norm          without norm: hidden = input
 *     x, z   = in_proj hidden
 *     u      = silu(causal depthwise convolution of x)
 *     dt, B, C = x_proj u
 *     y      = selective scan (selective_scan.h) of u with softplus(dt_proj dt + dt_bias), A, B, C,
 *              D, gated by z
 *     out    = input + out_proj y                 without norm: out = out_proj y
 *
 * With two directions, each has parameters of its own from the convolution to D, the second one
 * runs against the first, and y is the mean of both.
 *
 * Memory belongs to the caller, and bits are the same for every thread count, as in
 * selective_scan.h.
 */
#ifndef MAMBA_SCAN_MAMBA_BLOCK_H
#define MAMBA_SCAN_MAMBA_BLOCK_H

#include "scan_types.h"

enum { MAX_DIRECTIONS = 2 };

struct block_dims {
    ptrdiff_t batch;    /* Bt */
    ptrdiff_t length;   /* L */
    ptrdiff_t d_model;  /* M */
    ptrdiff_t channels; /* Di */
    ptrdiff_t states;   /* N */
    ptrdiff_t rank;     /* R, of dt */
    ptrdiff_t taps;     /* K, of the convolution */
    ptrdiff_t directions;
    ptrdiff_t threads; /* upper limit; without OpenMP or in a forked process one runs */
    bool reverse;      /* does the first direction run from the last step to the first? */
    bool tied;         /* A[d, n] = -(n + 1) exp(A_log[d]), else -exp(A_log[d, n]) */
    enum scan_type type;
    enum scan_isa isa; /* ignored for float64, which is always scalar */
    double norm_eps;   /* added to the mean of squares */
};

/* All contiguous. */
struct block_direction {
    const void *conv_weight; /* (Di, K) */
    const void *conv_bias;   /* (Di), or NULL */
    const void *x_proj;      /* (R + 2 N, Di) */
    const void *dt_proj;     /* (Di, R) */
    const void *dt_bias;     /* (Di), or NULL */
    const void *A_log;       /* (Di, N), or (Di) where A is tied */
    const void *D;           /* (Di), or NULL */
};

struct block_weights {
    const void *norm;     /* (M), or NULL: no norm and no residual */
    const void *in_proj;  /* (2 Di, M): rows of x, rows of z */
    const void *out_proj; /* (M, Di) */
    struct block_direction direction[MAX_DIRECTIONS];
};

struct block_direction_gradients {
    void *conv_weight;
    void *conv_bias;
    void *x_proj;
    void *dt_proj;
    void *dt_bias;
    void *A_log;
    void *D;
};

/* Every gradient is overwritten. NULL exactly where the weight is. */
struct block_gradients {
    void *norm;
    void *in_proj;
    void *out_proj;
    struct block_direction_gradients direction[MAX_DIRECTIONS];
};

/* Sizes of the caller's buffers; 0 for dims that are refused. What is saved for the backward pass
 * grows with Bt L Di (up to 64 states, see selective_scan.h) and with x_proj's output. */
size_t mamba_block_saved_bytes(const struct block_dims *dims);
size_t mamba_block_workspace_bytes(const struct block_dims *dims);

/* input, out (Bt, L, M) contiguous. saved: filled for the backward pass; NULL if none will
 * follow. */
enum scan_status mamba_block_forward(const struct block_dims *dims,
                                     const struct block_weights *weights, const void *input,
                                     void *out, void *saved, void *workspace);

/* saved: as the forward call with the same dims, weights and input left it. grad_out, grad_input
 * (Bt, L, M) contiguous. */
enum scan_status mamba_block_backward(const struct block_dims *dims,
                                      const struct block_weights *weights, const void *input,
                                      const void *saved, const void *grad_out, void *grad_input,
                                      const struct block_gradients *grads, void *workspace);

#endif
