/* Detects the processor's features at run time and chooses the kernels. */
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"

static bool allows(const char *wanted, const char *name)
{
    return !wanted || !*wanted || strcmp(wanted, name) == 0;
}

#if defined(__x86_64__)
/* Bits of CPUID and XGETBV: Intel's manual, volume 2. (__builtin_cpu_supports does the same with
 * 6 KB of code.) */
enum { ECX_FMA = 1 << 12, ECX_OSXSAVE = 1 << 27 };
enum { EBX_AVX2 = 1 << 5, EBX_AVX512F = 1 << 16, EBX_AVX512DQ = 1 << 17 };
enum { STATE_AVX = 0x06, STATE_AVX512 = 0xE6 }; /* registers that the operating system saves */

/* Returns whether the processor has FMA and `features`, and the system saves `state`. */
static bool has(struct mamba_x86 cpu, unsigned features, unsigned state)
{
    return (cpu.ecx_1 & ECX_FMA) && (cpu.xcr0 & state) == state &&
           (cpu.ebx_7 & features) == features;
}

const struct mamba_kernels *mamba_choose_x86_kernels(struct mamba_x86 cpu, const char *wanted)
{
    if (allows(wanted, "avx512") && has(cpu, EBX_AVX2 | EBX_AVX512F | EBX_AVX512DQ, STATE_AVX512))
        return &mamba_kernels_avx512;
    if (allows(wanted, "avx2") && has(cpu, EBX_AVX2, STATE_AVX))
        return &mamba_kernels_avx2;
    return allows(wanted, "scalar") ? &mamba_kernels_scalar : NULL;
}

const struct mamba_kernels *mamba_choose_kernels(const char *wanted)
{
    struct mamba_x86 cpu = {0, 0, 0};
    unsigned eax, ecx, edx, high;
    if (__get_cpuid(1, &eax, &cpu.ebx_7, &cpu.ecx_1, &edx) && (cpu.ecx_1 & ECX_OSXSAVE))
        __asm__("xgetbv" : "=a"(cpu.xcr0), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &eax, &cpu.ebx_7, &ecx, &edx))
        cpu.ebx_7 = 0;
    return mamba_choose_x86_kernels(cpu, wanted);
}

#elif defined(__wasm_simd128__) /* a module runs as a whole, or not at all */

const struct mamba_kernels *mamba_choose_kernels(const char *wanted)
{
    return allows(wanted, "simd128") ? &mamba_kernels_simd128 : NULL;
}

#else

const struct mamba_kernels *mamba_choose_kernels(const char *wanted)
{
#if defined(__aarch64__)
    if (allows(wanted, "neon"))
        return &mamba_kernels_neon;
#endif
    return allows(wanted, "scalar") ? &mamba_kernels_scalar : NULL;
}

#endif
