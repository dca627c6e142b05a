/* expf, exp2f and log1pf with the bits of glibc 2.36 on x86-64 (without FMA), so that the scalar
 * kernels compute here what they compute there. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* ---- 2^x, by the method of ARM's Optimized Routines, which glibc and musl use ---------------- */

enum { TABLE = 32 };
#define N 32.0

/* The bits of 2^(i / 32), less i in the place of the exponent's last bits. */
static const uint64_t TWO_TO[TABLE] = {
    0x3ff0000000000000, 0x3fefd9b0d3158574, 0x3fefb5586cf9890f, 0x3fef9301d0125b51,
    0x3fef72b83c7d517b, 0x3fef54873168b9aa, 0x3fef387a6e756238, 0x3fef1e9df51fdee1,
    0x3fef06fe0a31b715, 0x3feef1a7373aa9cb, 0x3feedea64c123422, 0x3feece086061892d,
    0x3feebfdad5362a27, 0x3feeb42b569d4f82, 0x3feeab07dd485429, 0x3feea47eb03a5585,
    0x3feea09e667f3bcd, 0x3fee9f75e8ec5f74, 0x3feea11473eb0187, 0x3feea589994cce13,
    0x3feeace5422aa0db, 0x3feeb737b0cdc5e5, 0x3feec49182a3f090, 0x3feed503b23e255d,
    0x3feee89f995ad3ad, 0x3feeff76f2fb5e47, 0x3fef199bdd85529c, 0x3fef3720dcef9069,
    0x3fef5818dcfba487, 0x3fef7c97337b9b5f, 0x3fefa4afa2a490da, 0x3fefd0765b6e4540,
};

/* Returns 2^((k + r) / 32) for the integer k in the low bits of `shifted`, and 2^(r / 32) = 1 + r
 * (c[2] + r (c[1] + r c[0])). */
static float two_to(double shifted, double r, const double c[3])
{
    uint64_t k;
    double scale;
    memcpy(&k, &shifted, sizeof k);
    const uint64_t bits = TWO_TO[k % TABLE] + (k << (52 - 5));
    memcpy(&scale, &bits, sizeof scale);
    const double high = c[0] * r + c[1], low = c[2] * r + 1;
    return (float)((high * (r * r) + low) * scale);
}

float expf(float x)
{
    static const double c[] = {0x1.c6af84b912394p-5 / N / N / N, 0x1.ebfce50fac4f3p-3 / N / N,
                               0x1.62e42ff0c52d6p-1 / N};
    if (!(x <= 0x1.62e42ep6f)) /* log(2^128) */
        return x + INFINITY;   /* NaN stays */
    if (x < -0x1.9fe368p6f)    /* log(2^-150) */
        return 0.0f;
    const double z = 0x1.71547652b82fep+0 * N * (double)x, shifted = z + 0x1.8p52;
    return two_to(shifted, z - (shifted - 0x1.8p52), c);
}

float exp2f(float x)
{
    static const double c[] = {0x1.c6af84b912394p-5, 0x1.ebfce50fac4f3p-3, 0x1.62e42ff0c52d6p-1};
    if (!(x < 128.0f))
        return x + INFINITY;
    if (x <= -150.0f)
        return 0.0f;
    const double shifted = (double)x + 0x1.8p52 / N;
    return two_to(shifted, (double)x - (shifted - 0x1.8p52 / N), c);
}

/* ---- log(1 + x), by the method of fdlibm ----------------------------------------------------- */

/* log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + R(s^2)), s = f / (2 + f), for 1 + x = 2^k (1 + f). The
 * engine calls it for x >= 0 only. */
float log1pf(float x)
{
    const float ln2_high = 6.9313812256e-01f, ln2_low = 9.0580006145e-06f;
    if (x < 0x1p-29f)
        return x < 0x1p-54f ? x : x - x * x * 0.5f;
    if (!(x < INFINITY))
        return x;
    float f = x, rest = 0.0f;
    int32_t k = 0;
    uint32_t fraction = 1;
    if (x >= 0x1.a827aep-2f) { /* sqrt(2) - 1 */
        float u = x < 0x1p53f ? 1.0f + x : x;
        uint32_t bits;
        memcpy(&bits, &u, sizeof bits);
        k = (int32_t)(bits >> 23) - 127;
        if (x < 0x1p53f)
            rest = (k > 0 ? 1.0f - (u - x) : x - (u - 1.0f)) / u;
        fraction = bits & 0x7fffff;
        if (fraction < 0x3504f7) {
            bits = fraction | 0x3f800000;
        } else { /* half of it */
            k++;
            bits = fraction | 0x3f000000;
            fraction = (0x800000 - fraction) >> 2;
        }
        memcpy(&u, &bits, sizeof u);
        f = u - 1.0f;
    }
    const float half = 0.5f * f * f, n = (float)k;
    if (fraction == 0) { /* |f| < 2^-20 */
        const float r = half * (1.0f - 0.66666666666666666f * f);
        return f == 0.0f ? n * ln2_high + (rest + n * ln2_low)
                         : n * ln2_high - ((r - (n * ln2_low + rest)) - f);
    }
    const float s = f / (2.0f + f), z = s * s;
    float r = 1.4798198640e-01f;
    r = 1.5313838422e-01f + z * r;
    r = 1.8183572590e-01f + z * r;
    r = 2.2222198546e-01f + z * r;
    r = 2.8571429849e-01f + z * r;
    r = 4.0000000596e-01f + z * r;
    r = 6.6666668653e-01f + z * r;
    r *= z;
    if (k == 0)
        return f - (half - s * (half + r));
    return n * ln2_high - ((half - (s * (half + r) + (n * ln2_low + rest))) - f);
}
