/* The choice of the kernels on processors that lack something. */
#include "check.h"

#include <string.h>

#if defined(__x86_64__)

static const char *lacking[2];

static bool has(const char *feature)
{
    return !(lacking[0] && strcmp(feature, lacking[0]) == 0) &&
           !(lacking[1] && strcmp(feature, lacking[1]) == 0);
}

/* The same code again, for a processor that we describe. */
#define __builtin_cpu_supports(feature) has(feature)
#define mamba_scan_kernels_for kernels_for
#define mamba_scan_isa_works isa_works
#define mamba_scan_best_isa best_isa
#define mamba_scan_work_plan work_plan_again
#define mamba_scan_threads threads_again
#include "../../scan/dispatch.c"

static void test_features(void)
{
    const char *const avx2[] = {"avx2", "fma"};
    const char *const avx512[] = {"avx512f", "avx512dq", "fma"};
    CHECK(best_isa() == SCAN_ISA_AVX512, "%d", (int)best_isa());
    for (int i = 0; i < 3; i++) {
        lacking[0] = avx512[i];
        CHECK(!isa_works(SCAN_ISA_AVX512), "AVX-512 without %s", avx512[i]);
        CHECK(best_isa() != SCAN_ISA_AVX512, "AVX-512 without %s", avx512[i]);
        for (int j = 0; j < 2; j++) {
            lacking[1] = avx2[j];
            CHECK(!isa_works(SCAN_ISA_AVX2), "AVX2 without %s", avx2[j]);
            CHECK(best_isa() == SCAN_ISA_SCALAR, "without %s: %d", avx2[j], (int)best_isa());
        }
        lacking[1] = NULL;
    }
    lacking[0] = "avx512f";
    CHECK(best_isa() == SCAN_ISA_AVX2, "%d", (int)best_isa());
    CHECK(kernels_for(SCAN_FLOAT32, SCAN_ISA_AVX2) == &mamba_scan_kernels_avx2, "AVX2");
    CHECK(!isa_works(SCAN_ISA_NEON), "NEON on x86-64");
}

#else

static void test_features(void)
{
    CHECK(true, "no choice but one");
}

#endif

int main(void)
{
    test_features();
    return check_summary();
}
