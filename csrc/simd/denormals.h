/* The floating-point mode of kernels: denormal numbers count as zero, sums round to nearest,
 * nothing traps, whatever mode the caller has set.
 *
 *     const uint64_t saved = denormals_off();
 *     ...
 *     denormals_restore(saved);
 *
 * A decaying state ends in denormals (the engine's on a black image), where many processors are a
 * hundred times slower. Such values are below 1.2e-38. The mode belongs to the thread, and its
 * caller gets it back. Switch inside a parallel region, not around it: a thread that OpenMP starts
 * there would keep the mode. */
#ifndef MAMBA_SIMD_DENORMALS_H
#define MAMBA_SIMD_DENORMALS_H

#include <stdint.h>

/* The empty asm keeps the compiler from moving loads and stores across a change of the mode. */
#if defined(__SSE__)
#include <xmmintrin.h>

static inline uint64_t denormals_off(void)
{
    enum { FLUSH_TO_ZERO = 0x8000, ALL_MASKED = 0x1F80, DENORMALS_ARE_ZERO = 0x0040 };
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(FLUSH_TO_ZERO | ALL_MASKED | DENORMALS_ARE_ZERO);
    __asm__ volatile("" ::: "memory");
    return saved;
}

static inline void denormals_restore(uint64_t saved)
{
    __asm__ volatile("" ::: "memory");
    _mm_setcsr((unsigned)saved);
}

#elif defined(__aarch64__)

static inline uint64_t denormals_off(void)
{
    const uint64_t flush_to_zero = UINT64_C(1) << 24;
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"(flush_to_zero) : "memory");
    return saved;
}

static inline void denormals_restore(uint64_t saved)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(saved) : "memory");
}

#elif defined(__arm__) && defined(__ARM_FP) /* with a floating-point unit */

static inline uint64_t denormals_off(void)
{
    const unsigned flush_to_zero = 1u << 24, saved = __builtin_arm_get_fpscr();
    __builtin_arm_set_fpscr(flush_to_zero);
    __asm__ volatile("" ::: "memory");
    return saved;
}

static inline void denormals_restore(uint64_t saved)
{
    __asm__ volatile("" ::: "memory");
    __builtin_arm_set_fpscr((unsigned)saved);
}

#else /* correct, only slower; in WebAssembly, v_flush (simd.h) keeps states from denormals */

static inline uint64_t denormals_off(void)
{
    return 0;
}

static inline void denormals_restore(uint64_t saved)
{
    (void)saved;
}

#endif
#endif
