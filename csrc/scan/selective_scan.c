/* Selective scan: how the work is cut up, and the two instances of the kernel template.
 *
 * Sixteen channels form a block and run side by side in the vector lanes, so that nothing is summed
 * across lanes in the recurrence and any number of states works. Time is cut into chunks. The
 * forward pass keeps the state only at the chunk borders; the backward pass recomputes one chunk at
 * a time in thread-local scratch, walking from the last chunk to the first, as mamba-ssm's CUDA
 * kernel does.
 */
#include "selective_scan.h"

#include "scan_math.h"

#ifdef _OPENMP
#include <omp.h>
#define SCAN_PRAGMA(text) _Pragma(#text)
#else
#define SCAN_PRAGMA(text)
#endif

enum {
    LANES = 16,     /* channels of a block: one AVX-512 register, two AVX2, four NEON */
    CHUNK = 16,     /* time steps between two checkpoints; the scratch of a chunk stays in cache */
    MAX_TASKS = 64, /* the backward is cut into about this many pieces, whatever the thread count */
};

/* How the backward is cut up. It depends on the shapes alone, so that sums keep their order. */
typedef struct ScanPlan {
    ptrdiff_t blocks;       /* of LANES channels; the last may be partly filled */
    ptrdiff_t chunks;       /* of CHUNK steps; the last may be shorter */
    ptrdiff_t groups;       /* of batch items; a group sums its parameter gradients in order */
    ptrdiff_t splits;       /* of the blocks; more than one only where the batch is small */
    ptrdiff_t state_size;   /* states * LANES: the elements of one block's state */
    ptrdiff_t task_scratch; /* elements a thread needs in the backward */
} ScanPlan;

static ptrdiff_t min_size(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static ScanPlan make_plan(const ScanDims *dims)
{
    ScanPlan plan;
    plan.blocks = (dims->channels + LANES - 1) / LANES;
    plan.chunks = (dims->length + CHUNK - 1) / CHUNK;
    plan.groups = min_size(dims->batch, MAX_TASKS);
    plan.splits = min_size(plan.blocks, MAX_TASKS / plan.groups);
    plan.state_size = dims->states * LANES;
    const ptrdiff_t blocks_per_split = (plan.blocks + plan.splits - 1) / plan.splits;
    /* decay, states, grad B, grad C of a chunk, and one carried gradient a block */
    plan.task_scratch = plan.state_size * (4 * CHUNK + 1 + blocks_per_split);
    return plan;
}

static ScanStatus check_dims(const ScanDims *dims)
{
    if (dims->batch < 1 || dims->channels < 1 || dims->length < 1 || dims->states < 1 ||
        dims->threads < 1) {
        return SCAN_ERROR_DIMS;
    }
    return SCAN_OK;
}

static ScanStatus check_inputs(const ScanInputs *inputs)
{
    if (inputs->u.data == NULL || inputs->delta.data == NULL || inputs->B.data == NULL ||
        inputs->C.data == NULL || inputs->A == NULL) {
        return SCAN_ERROR_NULL;
    }
    return SCAN_OK;
}

static ScanStatus check_gradients(const ScanInputs *inputs, const ScanGradients *grads)
{
    if (grads->u.data == NULL || grads->delta.data == NULL || grads->B.data == NULL ||
        grads->C.data == NULL || grads->A == NULL) {
        return SCAN_ERROR_NULL;
    }
    if ((inputs->z.data != NULL && grads->z.data == NULL) ||
        (inputs->D != NULL && grads->D == NULL) ||
        (inputs->delta_bias != NULL && grads->delta_bias == NULL)) {
        return SCAN_ERROR_NULL;
    }
    return SCAN_OK;
}

ptrdiff_t selective_scan_checkpoint_count(const ScanDims *dims)
{
    if (check_dims(dims) != SCAN_OK) {
        return 0;
    }
    const ScanPlan plan = make_plan(dims);
    return dims->batch * plan.blocks * (plan.chunks - 1) * plan.state_size;
}

ptrdiff_t selective_scan_forward_workspace_count(const ScanDims *dims)
{
    if (check_dims(dims) != SCAN_OK) {
        return 0;
    }
    const ScanPlan plan = make_plan(dims);
    return plan.state_size * (plan.blocks + 2 * dims->threads);
}

ptrdiff_t selective_scan_backward_workspace_count(const ScanDims *dims)
{
    if (check_dims(dims) != SCAN_OK) {
        return 0;
    }
    const ScanPlan plan = make_plan(dims);
    const ptrdiff_t packed_a = plan.blocks * plan.state_size;
    const ptrdiff_t partial_params = plan.groups * plan.blocks * (plan.state_size + 2 * LANES);
    const ptrdiff_t partial_bc =
        plan.splits > 1 ? 2 * plan.splits * dims->batch * dims->states * dims->length : 0;
    return packed_a + partial_params + dims->threads * plan.task_scratch + partial_bc;
}

static ptrdiff_t thread_index(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* The template's struct types; they expand where they are used, under the NAME of that moment. */
#define TILE NAME(Tile)
#define ROW NAME(Row)
#define SUMS NAME(Sums)

#define REAL float
#define NAME(stem) stem##_f32
#include "selective_scan_kernel.inc"
#undef REAL
#undef NAME

#define REAL double
#define NAME(stem) stem##_f64
#include "selective_scan_kernel.inc"
#undef REAL
#undef NAME
