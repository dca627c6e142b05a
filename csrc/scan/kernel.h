/* Inside the training kernels: how the work is cut up, and the table of kernels by instruction set.
 *
 * Glossary:
 *     item         one sequence of the batch
 *     block        a residual block of the network (mamba_block.h); never channels
 *     lane block   one vector's worth of channels, which run next to each other in its lanes
 *     chunk        consecutive time steps of an item, short enough for the second-level cache
 *     state group  STATES_PER_GROUP of a channel's states, worked on together in registers
 *     batch group  consecutive items whose parameter gradients are summed in order
 *     lane range   consecutive lane blocks; several where the batch is small
 *     task         one batch group times one lane range: the unit that threads take
 *     record       all quantities of a lane block at one time step, one vector for each field
 *     packed       a parameter as vectors of lanes (lane_blocks.inc) or panels (gemm.inc)
 *     tile, panel  of a matrix product only (gemm_tile.h)
 */
#ifndef MAMBA_SCAN_KERNEL_H
#define MAMBA_SCAN_KERNEL_H

#include "mamba_block.h"
#include "selective_scan.h"

#ifdef _OPENMP
#define MAMBA_SCAN_PRAGMA(text) _Pragma(#text)
#else
#define MAMBA_SCAN_PRAGMA(text)
#endif

/* How a scan is cut up. It depends on the shapes and the number of lanes alone, so that sums keep
 * their order for every thread count. Channels run in the lanes, so that the recurrence sums
 * nothing across lanes and any number of states works. */
struct work_plan {
    ptrdiff_t lane_blocks; /* the last may be partly filled */
    ptrdiff_t chunk;       /* time steps */
    ptrdiff_t chunks;      /* the last may be shorter */
    ptrdiff_t batch_groups;
    ptrdiff_t lane_ranges;
};

/* The kernels of one instruction set. Forward and backward share one layout of the workspace. Dims
 * and pointers have been checked. */
struct scan_kernels {
    size_t (*scan_workspace_bytes)(const struct scan_dims *);
    size_t (*scan_checkpoint_bytes)(const struct scan_dims *);
    void (*scan_forward)(const struct scan_dims *, const struct scan_inputs *,
                         const struct scan_mutable_tensor *out, void *checkpoints, void *workspace);
    void (*scan_backward)(const struct scan_dims *, const struct scan_inputs *,
                          const struct scan_tensor *grad_out, const void *checkpoints,
                          const struct scan_gradients *, void *workspace);
    size_t (*block_saved_bytes)(const struct block_dims *);
    size_t (*block_workspace_bytes)(const struct block_dims *);
    void (*block_forward)(const struct block_dims *, const struct block_weights *,
                          const void *input, void *out, void *saved, void *workspace);
    void (*block_backward)(const struct block_dims *, const struct block_weights *,
                           const void *input, const void *saved, const void *grad_out,
                           void *grad_input, const struct block_gradients *, void *workspace);
};

extern const struct scan_kernels mamba_scan_kernels_scalar;
extern const struct scan_kernels mamba_scan_kernels_double;
#if defined(__x86_64__)
extern const struct scan_kernels mamba_scan_kernels_avx2;
extern const struct scan_kernels mamba_scan_kernels_avx512;
#elif defined(__aarch64__)
extern const struct scan_kernels mamba_scan_kernels_neon;
#endif

/* NULL where this machine cannot run them or the type is unknown. */
const struct scan_kernels *mamba_scan_kernels_for(enum scan_type type, enum scan_isa isa);

struct work_plan mamba_scan_work_plan(ptrdiff_t lanes, const struct scan_dims *dims);

/* Threads for this many tasks: not more than the caller allows, and one in a forked process. */
int mamba_scan_threads(ptrdiff_t allowed, ptrdiff_t tasks);

static inline ptrdiff_t min_size(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static inline ptrdiff_t max_size(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

#endif
