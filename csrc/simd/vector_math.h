/* exp2, softplus and the sigmoid on vectors. Define SIMD_... (simd.h) before the include. */
#ifndef MAMBA_SIMD_VECTOR_MATH_H
#define MAMBA_SIMD_VECTOR_MATH_H

#include "simd.h"

enum { MAX_TOGETHER = 4 }; /* most vectors that v_exp2_up_to takes */

/* Largest exponents of v_exp2_up_to: of a result that is always finite, and of one that is NaN or
 * infinite if 2^x exceeds the largest float (or comes near it: 2^127.5). */
#define EXP2_FINITE 127.4375F
#define EXP2_OVERFLOWS 128

#define LOG2_E 1.44269504088896340736
#define LN_2 0.69314718055994530942

/* x[i] = 2^x[i] for x[i] up to `highest`, above which the result is 2^highest; at most 1.5 ulp off
 * in float and exactly 1 at 0. A result below 2^-126, the smallest normal number, is a denormal or
 * 0, so 0 in the mode of denormals.h.
 *
 * x is split into a multiple of 2^-EXP2_BITS and a small rest r: the sum with
 * 1.5 * 2^(23 - EXP2_BITS) has no room for more of the fraction, and holds the multiple in its low
 * bits. 2^r - 1 is a minimax polynomial without a constant term; its error is 2e-9, or 3e-8 with a
 * table of 8 entries. The table saves three of the multiplications that limit the scan's speed.
 * Several vectors are interleaved, so that the processor is busy while each waits for its own
 * steps.
 */
static inline void v_exp2_up_to(vreal *x, int count, REAL highest)
{
#if defined(SIMD_DOUBLE)
    (void)highest;
    for (int i = 0; i < count; i++)
        x[i] = exp2(x[i]);
#else
#if defined(SIMD_AVX512)
    static const REAL coefficients[] = {5.550213605e-02F, 2.402342856e-01F, 6.931471825e-01F};
#elif defined(SIMD_AVX2)
    static const REAL coefficients[] = {5.549621955e-02F, 2.402576357e-01F, 6.931471825e-01F};
#else
    static const REAL coefficients[] = {1.535336341e-04F, 1.339887502e-03F, 9.618436918e-03F,
                                        5.550332367e-02F, 2.402264774e-01F, 6.931471825e-01F};
#endif
    enum { TERMS = sizeof coefficients / sizeof *coefficients };
    const vreal magic = v_set1(12582912.0F / (1 << EXP2_BITS));
    vreal shifted[MAX_TOGETHER];
    vreal p[MAX_TOGETHER];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        x[i] = v_min(v_set1(highest), v_max(v_set1(-127), x[i]));
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        shifted[i] = x[i] + magic;
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        x[i] = x[i] - (shifted[i] - magic);
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        p[i] = v_set1(coefficients[0]);
    for (int k = 1; k < TERMS; k++) {
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            p[i] = v_fma(p[i], x[i], v_set1(coefficients[k]));
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) {
        const vreal scale = v_exp2_of_bits(shifted[i]);
        x[i] = v_fma(scale, p[i] * x[i], scale);
    }
#endif
}

/* 2^x, and at most 2^EXP2_FINITE */
static inline vreal v_exp2(vreal x)
{
    v_exp2_up_to(&x, 1, EXP2_FINITE);
    return x;
}

/* log(1 + w) for 0 <= w <= 1: 2 atanh(s) with s = w / (2 + w) <= 1/3, by a polynomial in s^2. */
static inline vreal v_log1p(vreal w)
{
#if defined(SIMD_DOUBLE)
    return log1p(w);
#else
    const vreal s = w / (w + v_set1(2));
    const vreal s2 = s * s;
    vreal p = v_set1(0.116195254F);
    p = v_fma(p, s2, v_set1(0.108516574F));
    p = v_fma(p, s2, v_set1(0.142962918F));
    p = v_fma(p, s2, v_set1(0.199998513F));
    p = v_fma(p, s2, v_set1(0.333333343F));
    const vreal half = v_fma(s * s2, p, s);
    return half + half;
#endif
}

/* softplus(x) = log(1 + e^x) and its slope, the sigmoid of x.
 *
 * torch returns x itself above 20. In float that is the same to the last bit; in double it is not,
 * so the double version does so too.
 */
static inline vreal v_softplus(vreal x, vreal *slope)
{
#if defined(SIMD_DOUBLE)
    if (x > 20) {
        *slope = 1;
        return x;
    }
#endif
    const vreal magnitude = v_max(v_set1(0) - x, x);
    const vreal w = v_exp2(magnitude * v_set1((REAL)-LOG2_E)); /* e^-|x| */
    const vreal inverse = v_set1(1) / (w + v_set1(1));
    *slope = v_if_negative(x, w * inverse, inverse);
    return v_max(v_set1(0), x) + v_log1p(w);
}

/* 1 / (1 + e^-x) */
static inline vreal v_sigmoid(vreal x)
{
    return v_set1(1) / (v_exp2(x * v_set1((REAL)-LOG2_E)) + v_set1(1));
}

#endif
