/* Inside the training kernels: how the work is cut up, and the table of kernels by instruction set.
 */
#ifndef MNIST_MAMBA_SCAN_KERNEL_H
#define MNIST_MAMBA_SCAN_KERNEL_H

#include "mamba_block.h"
#include "selective_scan.h"

#ifdef _OPENMP
#define SCAN_PRAGMA(text) _Pragma(#text)
#else
#define SCAN_PRAGMA(text)
#endif

/* How a scan is cut up. It depends on the shapes and the number of lanes alone, so
 * that sums keep their order whatever the thread count.
 *
 * Channels form blocks, one vector wide: they run side by side in the lanes, so that nothing is
 * summed across lanes in the recurrence and any number of states works. Time is cut into chunks. A
 * task is a group of batch items times, where the batch is small, a split of the blocks.
 */
typedef struct WorkPlan {
    ptrdiff_t blocks; /* of one vector of channels; the last may be partly filled */
    ptrdiff_t chunk;  /* time steps */
    ptrdiff_t chunks; /* the last may be shorter */
    ptrdiff_t groups; /* of batch items; a group sums its parameter gradients in order */
    ptrdiff_t splits; /* of the blocks */
} WorkPlan;

/* One set of kernels. The forward functions and the backward ones share a layout of the workspace;
 * dims, pointers and the plan have been checked. */
typedef struct ScanKernels {
    ptrdiff_t lanes;
    size_t (*scan_workspace_bytes)(const ScanDims *, const WorkPlan *);
    size_t (*scan_checkpoint_bytes)(const ScanDims *, const WorkPlan *);
    void (*scan_forward)(const ScanDims *, const WorkPlan *, const ScanInputs *,
                         const ScanMutableTensor *out, void *checkpoints, void *workspace);
    void (*scan_backward)(const ScanDims *, const WorkPlan *, const ScanInputs *,
                          const ScanTensor *grad_out, const void *checkpoints,
                          const ScanGradients *, void *workspace);
    size_t (*block_saved_bytes)(const BlockDims *);
    size_t (*block_workspace_bytes)(const BlockDims *);
    void (*block_forward)(const BlockDims *, const BlockWeights *, const void *input, void *out,
                          void *saved, void *workspace);
    void (*block_backward)(const BlockDims *, const BlockWeights *, const void *input,
                           const void *saved, const void *grad_out, void *grad_input,
                           const BlockGradients *, void *workspace);
} ScanKernels;

extern const ScanKernels scan_kernels_scalar;
extern const ScanKernels scan_kernels_double;
#if defined(__x86_64__)
extern const ScanKernels scan_kernels_avx2;
extern const ScanKernels scan_kernels_avx512;
#elif defined(__aarch64__)
extern const ScanKernels scan_kernels_neon;
#endif

/* NULL where this machine cannot run them or the type is unknown. */
const ScanKernels *scan_kernels_for(ptrdiff_t type, ptrdiff_t isa);

WorkPlan scan_work_plan(ptrdiff_t lanes, ptrdiff_t batch, ptrdiff_t channels, ptrdiff_t length);

static inline ptrdiff_t min_size(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static inline ptrdiff_t max_size(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

#endif
