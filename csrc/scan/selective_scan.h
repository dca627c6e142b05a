/* The training-time selective scan of Mamba-1 (Gu & Dao 2023, arXiv 2312.00752), forward and
 * backward. docs/the-scan.md derives both.
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
 * All memory belongs to the caller: nothing is allocated here, and nothing is kept between calls.
 *
 *     struct scan_dims dims = {.batch = 128, .channels = 128, .length = 49, .states = 16,
 *                              .threads = 2, .type = SCAN_FLOAT32, .isa = mamba_scan_best_isa()};
 *     void *checkpoints = alloc(mamba_scan_checkpoint_bytes(&dims));
 *     void *workspace = alloc(mamba_scan_workspace_bytes(&dims));
 *     mamba_scan_forward(&dims, &inputs, &out, checkpoints, workspace);
 *     mamba_scan_backward(&dims, &inputs, &grad_out, checkpoints, &grads, workspace);
 *
 * Results have the same bits for every thread count: the work is cut up by the shapes alone, and
 * every sum is taken in one fixed order. They differ in the last bits between instruction sets.
 * exp(delta_t * A) may be NaN or infinity above 2^127.4, as it is above the largest float.
 */
#ifndef MAMBA_SCAN_SELECTIVE_SCAN_H
#define MAMBA_SCAN_SELECTIVE_SCAN_H

#include "scan_types.h"

struct scan_dims {
    ptrdiff_t batch;
    ptrdiff_t channels;
    ptrdiff_t length;
    ptrdiff_t states;
    ptrdiff_t rank;    /* of dt; 0 where delta itself is given */
    ptrdiff_t threads; /* upper limit; without OpenMP or in a forked process one runs */
    bool delta_softplus;
    enum scan_type type;
    enum scan_isa isa; /* ignored for float64, which is always scalar */
};

struct scan_inputs {
    struct scan_tensor u;     /* (Bt, Di, L) */
    struct scan_tensor delta; /* (Bt, Di, L); with a rank, dt (Bt, R, L) */
    struct scan_tensor B;     /* (Bt, N, L) */
    struct scan_tensor C;     /* (Bt, N, L) */
    struct scan_tensor z;     /* (Bt, Di, L), data NULL without a gate */
    const void *A;            /* (Di, N) contiguous */
    const void *D;            /* (Di) contiguous, or NULL */
    const void *delta_bias;   /* (Di) contiguous, or NULL */
    const void *W;            /* (Di, R) contiguous, or NULL where the rank is 0 */
};

/* Every gradient is overwritten. z, D, delta_bias and W are NULL exactly where the input is. */
struct scan_gradients {
    struct scan_mutable_tensor u;     /* (Bt, Di, L) */
    struct scan_mutable_tensor delta; /* (Bt, Di, L); with a rank, of dt (Bt, R, L) */
    struct scan_mutable_tensor B;     /* (Bt, N, L) */
    struct scan_mutable_tensor C;     /* (Bt, N, L) */
    struct scan_mutable_tensor z;     /* (Bt, Di, L) */
    void *A;                          /* (Di, N) contiguous */
    void *D;                          /* (Di) contiguous */
    void *delta_bias;                 /* (Di) contiguous */
    void *W;                          /* (Di, R) contiguous */
};

/* Sizes of the caller's buffers; 0 for dims that are refused. A sequence of one chunk needs no
 * checkpoints: their size is 0, and any pointer but NULL will do. Checkpoints have at most
 * Bt Di' N' (L - 1) / 64 elements, with Di' = Di rounded up to a multiple of 16 and N' = N to one
 * of 4: up to 64 states no more than u with Di' channels. */
size_t mamba_scan_checkpoint_bytes(const struct scan_dims *dims);
size_t mamba_scan_workspace_bytes(const struct scan_dims *dims);

/* checkpoints: receives the state at the chunk borders; NULL if no backward pass will follow. */
enum scan_status mamba_scan_forward(const struct scan_dims *dims, const struct scan_inputs *inputs,
                                    const struct scan_mutable_tensor *out, void *checkpoints,
                                    void *workspace);

/* checkpoints: as the forward call with the same dims and inputs left them. */
enum scan_status mamba_scan_backward(const struct scan_dims *dims, const struct scan_inputs *inputs,
                                     const struct scan_tensor *grad_out, const void *checkpoints,
                                     const struct scan_gradients *grads, void *workspace);

#endif
