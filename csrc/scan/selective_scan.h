/* The training-time selective scan of Mamba-1 (Gu & Dao 2023, arXiv 2312.00752), forward and
 * backward.
 *
 *     raw_t   = delta_t, or W dt_t (the step size's projection, rank R, fused)
 *     delta_t = softplus(raw_t + delta_bias)            softplus and bias optional
 *     h_t     = exp(delta_t * A) h_{t-1} + delta_t * B_t * u_t
 *     out_t   = (C_t . h_t + D * u_t) * silu(z_t)       D and z optional
 *
 * Shapes, with batch Bt, channels Di (d_inner), states N (d_state), length L, rank R:
 *     u, delta, z, out (Bt, Di, L)    B, C (Bt, N, L)    A (Di, N)    D, delta_bias (Di)
 *     dt (Bt, R, L)    W (Di, R)
 *
 * Usage (all memory belongs to the caller; nothing is allocated here, nothing is kept between
 * calls):
 *
 *     ScanDims dims = {.batch = 128, .channels = 128, .length = 49, .states = 16, .threads = 2,
 *                      .type = SCAN_FLOAT32, .isa = scan_best_isa()};
 *     void *checkpoints = alloc(selective_scan_checkpoint_bytes(&dims));
 *     void *workspace = alloc(selective_scan_workspace_bytes(&dims));
 *     selective_scan_forward(&dims, &inputs, &out, checkpoints, workspace);
 *     selective_scan_backward(&dims, &inputs, &grad_out, checkpoints, &grads, workspace);
 *
 * Results have the same bits for every thread count: the work is cut up by the shapes alone and
 * every sum is taken in one fixed order. They differ in the last bits between instruction sets.
 */
#ifndef MNIST_MAMBA_SELECTIVE_SCAN_H
#define MNIST_MAMBA_SELECTIVE_SCAN_H

#include "scan_types.h"

typedef struct ScanDims {
    ptrdiff_t batch;
    ptrdiff_t channels;
    ptrdiff_t length;
    ptrdiff_t states;
    ptrdiff_t rank;           /* of dt; 0 where delta itself is given */
    ptrdiff_t threads;        /* upper limit; without OpenMP one thread runs */
    ptrdiff_t delta_softplus; /* 0 or 1 */
    ptrdiff_t type;           /* ScanType */
    ptrdiff_t isa;            /* ScanIsa; float64 is scalar whatever it says */
} ScanDims;

typedef struct ScanInputs {
    ScanTensor u;           /* (Bt, Di, L) */
    ScanTensor delta;       /* (Bt, Di, L); with a rank dt (Bt, R, L) */
    ScanTensor B;           /* (Bt, N, L) */
    ScanTensor C;           /* (Bt, N, L) */
    ScanTensor z;           /* (Bt, Di, L), data NULL without a gate */
    const void *A;          /* (Di, N) contiguous */
    const void *D;          /* (Di) contiguous, or NULL */
    const void *delta_bias; /* (Di) contiguous, or NULL */
    const void *W;          /* (Di, R) contiguous, or NULL where the rank is 0 */
} ScanInputs;

/* Every gradient is overwritten. z, D, delta_bias and W are NULL exactly where the input is. */
typedef struct ScanGradients {
    ScanMutableTensor u;     /* (Bt, Di, L) */
    ScanMutableTensor delta; /* (Bt, Di, L); with a rank dt's (Bt, R, L) */
    ScanMutableTensor B;     /* (Bt, N, L) */
    ScanMutableTensor C;     /* (Bt, N, L) */
    ScanMutableTensor z;     /* (Bt, Di, L) */
    void *A;                 /* (Di, N) contiguous */
    void *D;                 /* (Di) contiguous */
    void *delta_bias;        /* (Di) contiguous */
    void *W;                 /* (Di, R) contiguous */
} ScanGradients;

/* Sizes of the caller's buffers, 0 for dims that are refused. A checkpoint buffer may have no
 * bytes (a sequence of one chunk); pass any pointer that is not NULL then. The checkpoints are at
 * most as large as u up to 64 states: they grow with Bt Di L, not with N. */
size_t selective_scan_checkpoint_bytes(const ScanDims *dims);
size_t selective_scan_workspace_bytes(const ScanDims *dims);

/* checkpoints: filled with the state at the chunk borders, or NULL where no backward will follow.
 */
ScanStatus selective_scan_forward(const ScanDims *dims, const ScanInputs *inputs,
                                  const ScanMutableTensor *out, void *checkpoints, void *workspace);

/* checkpoints: as the forward call with the same dims and inputs left them. */
ScanStatus selective_scan_backward(const ScanDims *dims, const ScanInputs *inputs,
                                   const ScanTensor *grad_out, const void *checkpoints,
                                   const ScanGradients *grads, void *workspace);

#endif
