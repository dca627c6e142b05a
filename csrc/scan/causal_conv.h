/* The depthwise causal convolution in front of the scan, with its SiLU, forward and backward.
 *
 *     out_t = silu(bias + sum_k weight_k x_{t - (K - 1) + k})        x before the start is 0
 *
 * Shapes, with batch Bt, channels Di, length L, taps K: x, out (Bt, Di, L)  weight (Di, K)
 * bias (Di). Memory belongs to the caller, and bits are the same for every thread count, as in
 * selective_scan.h.
 */
#ifndef MNIST_MAMBA_CAUSAL_CONV_H
#define MNIST_MAMBA_CAUSAL_CONV_H

#include "scan_types.h"

typedef struct ConvDims {
    ptrdiff_t batch;
    ptrdiff_t channels;
    ptrdiff_t length;
    ptrdiff_t taps;
    ptrdiff_t threads; /* upper limit; without OpenMP one thread runs */
    ptrdiff_t type;    /* ScanType */
    ptrdiff_t isa;     /* ScanIsa; float64 is scalar whatever it says */
} ConvDims;

typedef struct ConvInputs {
    ScanTensor x;       /* (Bt, Di, L) */
    const void *weight; /* (Di, K) contiguous */
    const void *bias;   /* (Di) contiguous, or NULL */
} ConvInputs;

/* Every gradient is overwritten. bias is NULL exactly where the input is. */
typedef struct ConvGradients {
    ScanMutableTensor x; /* (Bt, Di, L) */
    void *weight;        /* (Di, K) contiguous */
    void *bias;          /* (Di) contiguous */
} ConvGradients;

/* Size of the caller's workspace, 0 for dims that are refused. */
size_t causal_conv_workspace_bytes(const ConvDims *dims);

ScanStatus causal_conv_forward(const ConvDims *dims, const ConvInputs *inputs,
                               const ScanMutableTensor *out, void *workspace);
ScanStatus causal_conv_backward(const ConvDims *dims, const ConvInputs *inputs,
                                const ScanTensor *grad_out, const ConvGradients *grads,
                                void *workspace);

#endif
