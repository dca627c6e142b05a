/* Elementwise functions of the selective scan.
 *
 * The float versions are branch-free plain C, so that a compiler vectorises a loop over them; the
 * double versions are libm's, since float64 serves gradient checks and not speed.
 */
#ifndef MNIST_MAMBA_SCAN_MATH_H
#define MNIST_MAMBA_SCAN_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

/* torch.nn.functional.softplus is the identity above this. */
#define SCAN_SOFTPLUS_THRESHOLD 20

/* exp(x), at most 2 ulp off; results below FLT_MIN (x < -87.34) are 0, as a decaying state wants
 * it.
 *
 * x = k ln2 + r with |r| <= ln2 / 2, exp(x) = 2^k (1 + r + r^2 q(r)); q is a Chebyshev fit of
 * degree 4, whose own error is 8e-9 of the result. Adding 1.5 * 2^23 rounds to an integer and
 * leaves k in the low bits; k is then added to the exponent.
 */
static inline float scan_exp_f32(float x)
{
    const float magic = 12582912.0F;
    const float shifted = x * 1.44269504F + magic;
    const float k = shifted - magic;
    const float r = (x - k * 0.693359375F) + k * 2.12194440e-4F;

    float q = 1.39340933e-3F;
    q = q * r + 8.36347509e-3F;
    q = q * r + 4.16664593e-2F;
    q = q * r + 1.66665748e-1F;
    q = q * r + 0.5F;
    const float mantissa = (r * r) * q + r + 1.0F;

    uint32_t bits;
    uint32_t exponent;
    memcpy(&bits, &mantissa, sizeof bits);
    memcpy(&exponent, &shifted, sizeof exponent);
    bits += exponent << 23;
    float y;
    memcpy(&y, &bits, sizeof y);

    y = x <= 88.7228317F ? y : x + INFINITY; /* overflow to inf; a NaN stays one */
    return x < -87.3365448F ? 0.0F : y;
}

/* log1p(w) for 0 <= w <= 1, by 2 atanh(s) with s = w / (2 + w) <= 1/3 and a fit of degree 4 in s^2.
 */
static inline float scan_log1p_f32(float w)
{
    const float s = w / (2.0F + w);
    const float s2 = s * s;
    float p = 0.116195254F;
    p = p * s2 + 0.108516574F;
    p = p * s2 + 0.142962918F;
    p = p * s2 + 0.199998513F;
    p = p * s2 + 0.333333343F;
    return 2.0F * (s * s2 * p + s);
}

static inline double scan_exp_f64(double x)
{
    return exp(x);
}

static inline double scan_log1p_f64(double w)
{
    return log1p(w);
}

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
