/* The training-time selective scan of Mamba-1 (Gu & Dao 2023, arXiv 2312.00752), forward and
 * backward.
 *
 *     delta_t = softplus(delta_t + delta_bias)          softplus and bias optional
 *     h_t     = exp(delta_t * A) h_{t-1} + delta_t * B_t * u_t
 *     out_t   = (C_t . h_t + D * u_t) * silu(z_t)       D and z optional
 *
 * Shapes, with batch Bt, channels Di (d_inner), states N (d_state), length L:
 *     u, delta, z, out (Bt, Di, L)    B, C (Bt, N, L)    A (Di, N)    D, delta_bias (Di)
 *
 * Usage (all memory belongs to the caller; nothing is allocated here, nothing is kept between
 * calls):
 *
 *     ScanDims dims = {.batch = 128, .channels = 128, .length = 49, .states = 16, .threads = 2};
 *     float *checkpoints = alloc(selective_scan_checkpoint_count(&dims) * sizeof(float));
 *     float *workspace = alloc(selective_scan_backward_workspace_count(&dims) * sizeof(float));
 *     selective_scan_forward_f32(&dims, &inputs, &out, checkpoints, workspace);
 *     selective_scan_backward_f32(&dims, &inputs, &grad_out, checkpoints, &grads, workspace);
 *
 * Results have the same bits for every thread count: the work is cut up by the shapes alone and
 * every sum is taken in one fixed order.
 */
#ifndef MNIST_MAMBA_SELECTIVE_SCAN_H
#define MNIST_MAMBA_SELECTIVE_SCAN_H

#include <stddef.h>

typedef enum ScanStatus {
    SCAN_OK = 0,
    SCAN_ERROR_DIMS = 1, /* a dimension or the thread count is smaller than 1 */
    SCAN_ERROR_NULL = 2, /* a required pointer is NULL */
} ScanStatus;

typedef struct ScanDims {
    ptrdiff_t batch;
    ptrdiff_t channels;
    ptrdiff_t length;
    ptrdiff_t states;
    ptrdiff_t threads;        /* upper limit; without OpenMP one thread runs */
    ptrdiff_t delta_softplus; /* 0 or 1 */
} ScanDims;

/* A strided 3-d tensor. Strides count elements; an input's may be 0 (broadcast). */
typedef struct ScanTensor {
    const void *data;
    ptrdiff_t stride[3]; /* (batch, channel or state, time) */
} ScanTensor;

typedef struct ScanMutableTensor {
    void *data;
    ptrdiff_t stride[3];
} ScanMutableTensor;

typedef struct ScanInputs {
    ScanTensor u;           /* (Bt, Di, L) */
    ScanTensor delta;       /* (Bt, Di, L) */
    ScanTensor B;           /* (Bt, N, L) */
    ScanTensor C;           /* (Bt, N, L) */
    ScanTensor z;           /* (Bt, Di, L), data NULL without a gate */
    const void *A;          /* (Di, N) contiguous */
    const void *D;          /* (Di) contiguous, or NULL */
    const void *delta_bias; /* (Di) contiguous, or NULL */
} ScanInputs;

/* Every gradient is overwritten. z, D and delta_bias are NULL exactly where the input is. */
typedef struct ScanGradients {
    ScanMutableTensor u;     /* (Bt, Di, L) */
    ScanMutableTensor delta; /* (Bt, Di, L) */
    ScanMutableTensor B;     /* (Bt, N, L) */
    ScanMutableTensor C;     /* (Bt, N, L) */
    ScanMutableTensor z;     /* (Bt, Di, L) */
    void *A;                 /* (Di, N) contiguous */
    void *D;                 /* (Di) contiguous */
    void *delta_bias;        /* (Di) contiguous */
} ScanGradients;

/* Sizes in elements (not bytes) of the caller's buffers; the same for float and double. A
 * checkpoint buffer may have no elements (a sequence of one chunk); pass any pointer that is not
 * NULL then. */
ptrdiff_t selective_scan_checkpoint_count(const ScanDims *dims);
ptrdiff_t selective_scan_forward_workspace_count(const ScanDims *dims);
ptrdiff_t selective_scan_backward_workspace_count(const ScanDims *dims);

/* checkpoints: filled with the state at the chunk borders, or NULL where no backward will follow.
 */
ScanStatus selective_scan_forward_f32(const ScanDims *dims, const ScanInputs *inputs,
                                      const ScanMutableTensor *out, float *checkpoints,
                                      float *workspace);
ScanStatus selective_scan_forward_f64(const ScanDims *dims, const ScanInputs *inputs,
                                      const ScanMutableTensor *out, double *checkpoints,
                                      double *workspace);

/* checkpoints: as the forward call with the same inputs left them. */
ScanStatus selective_scan_backward_f32(const ScanDims *dims, const ScanInputs *inputs,
                                       const ScanTensor *grad_out, const float *checkpoints,
                                       const ScanGradients *grads, float *workspace);
ScanStatus selective_scan_backward_f64(const ScanDims *dims, const ScanInputs *inputs,
                                       const ScanTensor *grad_out, const double *checkpoints,
                                       const ScanGradients *grads, double *workspace);

#endif
