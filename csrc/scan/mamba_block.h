/* A whole residual block of a Mamba network, forward and backward, one sequence after the other, so
 * that everything between its input and its output stays in the cache of the core that works on it:
 *
 *     hidden = input / rms(input) * norm          without norm: hidden = input
 *     x, z   = in_proj hidden
 *     u      = silu(causal depthwise convolution of x)
 *     dt, B, C = x_proj u
 *     y      = selective scan (selective_scan.h) of u with softplus(dt_proj dt + dt_bias), A, B, C,
 *              D, gated by z
 *     out    = input + out_proj y                 without norm: out = out_proj y
 *
 * With two directions, each with parameters of its own from the convolution to D, the second one
 * runs against the first, and y is the mean of both.
 *
 * Memory belongs to the caller, and bits are the same for every thread count, as in
 * selective_scan.h.
 */
#ifndef MNIST_MAMBA_MAMBA_BLOCK_H
#define MNIST_MAMBA_MAMBA_BLOCK_H

#include "scan_types.h"

enum { MAX_DIRECTIONS = 2 };

typedef struct BlockDims {
    ptrdiff_t batch;
    ptrdiff_t length;   /* L */
    ptrdiff_t d_model;  /* M */
    ptrdiff_t channels; /* Di */
    ptrdiff_t states;   /* N */
    ptrdiff_t rank;     /* R, of dt */
    ptrdiff_t taps;     /* K, of the convolution */
    ptrdiff_t directions;
    ptrdiff_t reverse; /* 1: the first direction runs from the last step to the first, else 0 */
    ptrdiff_t tied;    /* 1: A[d, n] = -(n + 1) exp(A_log[d]), else 0: -exp(A_log[d, n]) */
    ptrdiff_t threads; /* upper limit; without OpenMP one thread runs */
    ptrdiff_t type;    /* ScanType */
    ptrdiff_t isa;     /* ScanIsa; float64 is scalar whatever it says */
    double norm_eps;   /* added to the mean of squares */
} BlockDims;

/* All contiguous. */
typedef struct BlockDirection {
    const void *conv_weight; /* (Di, K) */
    const void *conv_bias;   /* (Di), or NULL */
    const void *x_proj;      /* (R + 2 N, Di) */
    const void *dt_proj;     /* (Di, R) */
    const void *dt_bias;     /* (Di), or NULL */
    const void *A_log;       /* (Di, N), or (Di) where A is tied */
    const void *D;           /* (Di), or NULL */
} BlockDirection;

typedef struct BlockWeights {
    const void *norm;     /* (M), or NULL: no norm and no residual */
    const void *in_proj;  /* (2 Di, M): rows of x, rows of z */
    const void *out_proj; /* (M, Di) */
    BlockDirection direction[MAX_DIRECTIONS];
} BlockWeights;

typedef struct BlockDirectionGradients {
    void *conv_weight;
    void *conv_bias;
    void *x_proj;
    void *dt_proj;
    void *dt_bias;
    void *A_log;
    void *D;
} BlockDirectionGradients;

/* Every gradient is overwritten. NULL exactly where the weight is. */
typedef struct BlockGradients {
    void *norm;
    void *in_proj;
    void *out_proj;
    BlockDirectionGradients direction[MAX_DIRECTIONS];
} BlockGradients;

/* Sizes of the caller's buffers, 0 for dims that are refused. What is saved for the backward pass
 * grows with batch x L x Di (up to 64 states, see selective_scan.h), and with x_proj's output. */
size_t mamba_block_saved_bytes(const BlockDims *dims);
size_t mamba_block_workspace_bytes(const BlockDims *dims);

/* input, out (batch, L, M) contiguous. saved: filled for the backward pass, or NULL where none will
 * follow. */
ScanStatus mamba_block_forward(const BlockDims *dims, const BlockWeights *weights,
                               const void *input, void *out, void *saved, void *workspace);

/* saved: as the forward call with the same dims, weights and input left it. grad_out, grad_input
 * (batch, L, M) contiguous. */
ScanStatus mamba_block_backward(const BlockDims *dims, const BlockWeights *weights,
                                const void *input, const void *saved, const void *grad_out,
                                void *grad_input, const BlockGradients *grads, void *workspace);

#endif
