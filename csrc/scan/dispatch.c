/* Which kernels run, and how the work is cut up for them. */
#include "kernel.h"

enum {
    MAX_TASKS = 64, /* work is cut into about this many pieces, whatever the thread count */
    /* Time steps. One state is kept for each chunk: up to this many states a channel, that is no
     * more than the channel's own sequence. Longer chunks would not fit the second cache; chunks
     * that fit the first one are slower (docs/benchmarks.md). */
    MAX_CHUNK = 64,
};

int scan_isa_works(ScanIsa isa)
{
    switch (isa) {
    case SCAN_ISA_SCALAR:
        return 1;
#if defined(__x86_64__)
    case SCAN_ISA_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case SCAN_ISA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
#elif defined(__aarch64__)
    case SCAN_ISA_NEON:
        return 1;
#endif
    default:
        return 0;
    }
}

ScanIsa scan_best_isa(void)
{
    ScanIsa isa = SCAN_ISA_AVX512;
    while (!scan_isa_works(isa)) {
        isa--;
    }
    return isa;
}

const ScanKernels *scan_kernels_for(ptrdiff_t type, ptrdiff_t isa)
{
    if (type == SCAN_FLOAT64) {
        return &scan_kernels_double;
    }
    if (type != SCAN_FLOAT32 || isa < SCAN_ISA_SCALAR || isa > SCAN_ISA_AVX512 ||
        !scan_isa_works((ScanIsa)isa)) {
        return NULL;
    }
    switch (isa) {
#if defined(__x86_64__)
    case SCAN_ISA_AVX2:
        return &scan_kernels_avx2;
    case SCAN_ISA_AVX512:
        return &scan_kernels_avx512;
#elif defined(__aarch64__)
    case SCAN_ISA_NEON:
        return &scan_kernels_neon;
#endif
    default:
        return &scan_kernels_scalar;
    }
}

WorkPlan scan_work_plan(ptrdiff_t lanes, ptrdiff_t batch, ptrdiff_t channels, ptrdiff_t length)
{
    WorkPlan plan;
    plan.blocks = (channels + lanes - 1) / lanes;
    plan.chunks = (length + MAX_CHUNK - 1) / MAX_CHUNK;
    plan.chunk = (length + plan.chunks - 1) / plan.chunks; /* all about equally long */
    plan.chunks = (length + plan.chunk - 1) / plan.chunk;
    plan.groups = min_size(batch, MAX_TASKS);
    plan.splits = min_size(plan.blocks, MAX_TASKS / plan.groups);
    return plan;
}
