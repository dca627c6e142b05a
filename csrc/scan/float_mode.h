/* Flushing denormal numbers to zero while a kernel runs. */
#ifndef MNIST_MAMBA_FLOAT_MODE_H
#define MNIST_MAMBA_FLOAT_MODE_H

#include <stdint.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

/* A decaying state ends in denormals, which cost some processors a hundred cycles an operation.
 * While a thread scans they count as zero; the caller's mode is put back afterwards. */
typedef uint64_t ScanFloatMode;

static inline ScanFloatMode scan_flush_denormals(void)
{
#if defined(__SSE__)
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040U); /* flush to zero, denormals are zero */
    return mode;
#elif defined(__aarch64__)
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" ::"r"(mode | (UINT64_C(1) << 24)));
    return mode;
#else
    return 0;
#endif
}

static inline void scan_restore_float_mode(ScanFloatMode mode)
{
#if defined(__SSE__)
    _mm_setcsr((unsigned int)mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(mode));
#else
    (void)mode;
#endif
}

#endif
