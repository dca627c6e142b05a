/* Chooses the kernels at run time, and cuts up the work for them. */
#include "fork.h"
#include "kernel.h"

enum {
    MAX_TASKS = 64, /* whatever the thread count */
    /* Time steps. Each chunk keeps one checkpoint of N states per channel, which up to N = 64 is no
     * more than the channel's own sequence. Longer chunks would not fit the second-level cache;
     * chunks that fit the first are slower. */
    MAX_CHUNK = 64,
};

const struct scan_kernels *mamba_scan_kernels_for(enum scan_type type, enum scan_isa isa)
{
    if (type == SCAN_FLOAT64)
        return &mamba_scan_kernels_double;
    if (type != SCAN_FLOAT32)
        return NULL;
    switch (isa) {
    case SCAN_ISA_SCALAR:
        return &mamba_scan_kernels_scalar;
#if defined(__x86_64__)
    case SCAN_ISA_AVX2:
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            return &mamba_scan_kernels_avx2;
        return NULL;
    case SCAN_ISA_AVX512:
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("fma")) {
            return &mamba_scan_kernels_avx512;
        }
        return NULL;
#elif defined(__aarch64__)
    case SCAN_ISA_NEON:
        return &mamba_scan_kernels_neon;
#endif
    default:
        return NULL;
    }
}

bool mamba_scan_isa_works(enum scan_isa isa)
{
    return mamba_scan_kernels_for(SCAN_FLOAT32, isa) != NULL;
}

enum scan_isa mamba_scan_best_isa(void)
{
    enum scan_isa isa = SCAN_ISA_AVX512;
    while (!mamba_scan_isa_works(isa))
        isa--;
    return isa;
}

struct work_plan mamba_scan_work_plan(ptrdiff_t lanes, const struct scan_dims *dims)
{
    const ptrdiff_t length = dims->length;
    struct work_plan plan;
    plan.lane_blocks = (dims->channels + lanes - 1) / lanes;
    plan.chunks = (length + MAX_CHUNK - 1) / MAX_CHUNK;
    plan.chunk = (length + plan.chunks - 1) / plan.chunks; /* all about equally long */
    plan.chunks = (length + plan.chunk - 1) / plan.chunk;
    plan.batch_groups = min_size(dims->batch, MAX_TASKS);
    plan.lane_ranges = min_size(plan.lane_blocks, MAX_TASKS / plan.batch_groups);
    return plan;
}

int mamba_scan_threads(ptrdiff_t allowed, ptrdiff_t tasks)
{
    return forked ? 1 : (int)min_size(allowed, tasks);
}
