/* Detects the processor's features at run time and chooses the kernels. */
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"

#if defined(__x86_64__)
/* Bits of CPUID and XGETBV: Intel's manual, volume 2. (__builtin_cpu_supports does the same with
 * 6 KB of code.) */
enum { ECX_FMA = 1 << 12, ECX_OSXSAVE = 1 << 27 };
enum { EBX_AVX2 = 1 << 5, EBX_AVX512F = 1 << 16, EBX_AVX512DQ = 1 << 17 };
enum { STATE_AVX = 0x06, STATE_AVX512 = 0xE6 }; /* registers that the operating system saves */

/* Returns whether the processor has FMA and `features`, and the system saves `state`. */
static bool has(unsigned features, unsigned state)
{
    unsigned eax, ebx, ecx, edx, saved, high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & ECX_FMA) || !(ecx & ECX_OSXSAVE))
        return false;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    return (saved & state) == state && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
           (ebx & features) == features;
}
#endif

static bool allows(const char *wanted, const char *name)
{
    return !wanted || !*wanted || strcmp(wanted, name) == 0;
}

const struct mamba_kernels *mamba_choose_kernels(const char *wanted)
{
#if defined(__x86_64__)
    if (allows(wanted, "avx512") && has(EBX_AVX2 | EBX_AVX512F | EBX_AVX512DQ, STATE_AVX512))
        return &mamba_kernels_avx512;
    if (allows(wanted, "avx2") && has(EBX_AVX2, STATE_AVX))
        return &mamba_kernels_avx2;
#elif defined(__aarch64__)
    if (allows(wanted, "neon"))
        return &mamba_kernels_neon;
#endif
    return allows(wanted, "scalar") ? &mamba_kernels_scalar : NULL;
}
