/* One vector type and its few operations, for the instruction set that the including file names.
 *
 * Define one of SIMD_AVX512, SIMD_AVX2, SIMD_NEON, SIMD_WASM, SIMD_SCALAR, SIMD_DOUBLE before the
 * include.
 * Then REAL is the type of an element and LANES the number of elements of a vector `vreal`, on
 * which C's own + - * / work. SIMD_SCALAR and SIMD_DOUBLE are vectors of one element: the oracle of
 * the others, and the type of gradient checks.
 *
 * If an operand of v_min or v_max is NaN, the result is the second operand: v_max(limit, x) keeps a
 * NaN in x.
 */
#ifndef MAMBA_SIMD_SIMD_H
#define MAMBA_SIMD_SIMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(SIMD_AVX512)

#include <immintrin.h>
enum { LANES = 16 };
typedef float REAL;
typedef __m512 vreal;
#define V_LOAD(p) _mm512_loadu_ps(p)
#define V_STORE(p, x) _mm512_storeu_ps(p, x)
#define V_STREAM(p, x) _mm512_stream_ps(p, x)
#define V_SET1(x) _mm512_set1_ps(x)
#define V_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define V_MIN(a, b) _mm512_min_ps(a, b)
#define V_MAX(a, b) _mm512_max_ps(a, b)

#elif defined(SIMD_AVX2)

#include <immintrin.h>
enum { LANES = 8 };
typedef float REAL;
typedef __m256 vreal;
#define V_LOAD(p) _mm256_loadu_ps(p)
#define V_STORE(p, x) _mm256_storeu_ps(p, x)
#define V_STREAM(p, x) _mm256_stream_ps(p, x)
#define V_SET1(x) _mm256_set1_ps(x)
#define V_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define V_MIN(a, b) _mm256_min_ps(a, b)
#define V_MAX(a, b) _mm256_max_ps(a, b)

#elif defined(SIMD_NEON)

#include <arm_neon.h>
enum { LANES = 4 };
typedef float REAL;
typedef float32x4_t vreal;
#define V_LOAD(p) vld1q_f32(p)
#define V_STORE(p, x) vst1q_f32(p, x)
#define V_SET1(x) vdupq_n_f32(x)
#define V_FMA(a, b, c) vfmaq_f32(c, a, b)
/* NEON's minimum and maximum return the NaN of either operand, so the second one's too. */
#define V_MIN(a, b) vminq_f32(a, b)
#define V_MAX(a, b) vmaxq_f32(a, b)

#elif defined(SIMD_WASM)

#include <wasm_simd128.h>
enum { LANES = 4 };
typedef float REAL;
typedef float vreal __attribute__((vector_size(16)));
#define V_LOAD(p) ((vreal)wasm_v128_load(p))
#define V_STORE(p, x) wasm_v128_store(p, (v128_t)(x))
#define V_SET1(x) ((vreal)wasm_f32x4_splat(x))
#define V_FMA(a, b, c) ((a) * (b) + (c)) /* rounded twice */
/* pmin and pmax return the first operand if one is NaN. */
#define V_MIN(a, b) ((vreal)wasm_f32x4_pmin((v128_t)(b), (v128_t)(a)))
#define V_MAX(a, b) ((vreal)wasm_f32x4_pmax((v128_t)(b), (v128_t)(a)))

#elif defined(SIMD_SCALAR) || defined(SIMD_DOUBLE)

enum { LANES = 1 };
#if defined(SIMD_SCALAR)
typedef float REAL;
#else
typedef double REAL;
#endif
typedef REAL vreal;
#define V_LOAD(p) (*(p))
#define V_STORE(p, x) (*(p) = (x))
#define V_SET1(x) ((REAL)(x))
#define V_FMA(a, b, c) ((a) * (b) + (c))
#define V_MIN(a, b) ((a) < (b) ? (a) : (b))
#define V_MAX(a, b) ((a) > (b) ? (a) : (b))

#else
#error "define SIMD_AVX512, SIMD_AVX2, SIMD_NEON, SIMD_WASM, SIMD_SCALAR or SIMD_DOUBLE first"
#endif

static inline vreal v_load(const REAL *p)
{
    return V_LOAD(p);
}

static inline void v_store(REAL *p, vreal x)
{
    V_STORE(p, x);
}

static inline vreal v_set1(REAL x)
{
    return V_SET1(x);
}

/* Copy count elements, whole vectors, past the caches if the instruction set can: the caches keep
 * what they hold, and memory need not be read before it is overwritten. */
static inline void v_stream(REAL *to, const REAL *from, ptrdiff_t count)
{
#if defined(SIMD_AVX512) || defined(SIMD_AVX2)
    if ((uintptr_t)to % sizeof(vreal) == 0) {
        for (ptrdiff_t i = 0; i < count; i += LANES)
            V_STREAM(to + i, v_load(from + i));
        _mm_sfence(); /* a later barrier alone does not order such stores */
        return;
    }
#endif
    memcpy(to, from, (size_t)count * sizeof(REAL));
}

/* a b + c, rounded once if the instruction set can. */
static inline vreal v_fma(vreal a, vreal b, vreal c)
{
    return V_FMA(a, b, c);
}

static inline vreal v_min(vreal a, vreal b)
{
    return V_MIN(a, b);
}

static inline vreal v_max(vreal a, vreal b)
{
    return V_MAX(a, b);
}

/* x < 0 ? a : b, lane by lane; b where x is NaN. */
static inline vreal v_if_negative(vreal x, vreal a, vreal b)
{
#if defined(SIMD_AVX512)
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, v_set1(0), _CMP_LT_OQ), a);
#elif defined(SIMD_AVX2)
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, v_set1(0), _CMP_LT_OQ));
#elif defined(SIMD_NEON)
    return vbslq_f32(vcltq_f32(x, v_set1(0)), a, b);
#elif defined(SIMD_WASM)
    const v128_t negative = wasm_f32x4_lt((v128_t)x, (v128_t)v_set1(0));
    return (vreal)wasm_v128_bitselect((v128_t)a, (v128_t)b, negative);
#else
    return x < 0 ? a : b;
#endif
}

/* x, lane by lane; with WebAssembly, which has no mode that counts denormals as zero (denormals.h),
 * 0 where |x| < 2^-63: a state then decays to 0, and never into denormals. */
static inline vreal v_flush(vreal x)
{
#if defined(SIMD_WASM)
    const v128_t size = wasm_f32x4_abs((v128_t)x);
    return (vreal)wasm_v128_andnot((v128_t)x, wasm_f32x4_lt(size, wasm_f32x4_splat(0x1p-63F)));
#else
    return x;
#endif
}

#if !defined(SIMD_DOUBLE)

/* 2^x takes the first EXP2_BITS bits of x's fraction from a table in a register, if one instruction
 * looks up a whole vector of indices there. */
#if defined(SIMD_AVX512)
enum { EXP2_BITS = 4 };
#elif defined(SIMD_AVX2)
enum { EXP2_BITS = 3 };
#else
enum { EXP2_BITS = 0 };
#endif

/* 2^(k / 2^EXP2_BITS), where k is the integer in the low bits of `shifted` (see v_exp2_up_to), for
 * a normal result. k is added to the exponent's bits. Its low EXP2_BITS bits, the index, end up
 * just below the exponent: each entry of the table is smaller by its own index to make up for that.
 */
static inline vreal v_exp2_of_bits(vreal shifted)
{
#if defined(SIMD_AVX512)
    const __m512i table =
        _mm512_setr_epi32(0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                          0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                          0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d);
    const __m512i bits = _mm512_castps_si512(shifted);
    const __m512i entry = _mm512_permutexvar_epi32(bits, table);
    return _mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(bits, 23 - EXP2_BITS)));
#elif defined(SIMD_AVX2)
    const __m256i table = _mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                            0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7);
    const __m256i bits = _mm256_castps_si256(shifted);
    const __m256i entry = _mm256_permutevar8x32_epi32(table, bits);
    return _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(bits, 23 - EXP2_BITS)));
#elif defined(SIMD_NEON)
    const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vdupq_n_s32(0x3f800000), exponent));
#elif defined(SIMD_WASM)
    const v128_t exponent = wasm_i32x4_shl((v128_t)shifted, 23);
    return (vreal)wasm_i32x4_add(wasm_i32x4_splat(0x3f800000), exponent);
#else
    uint32_t bits;
    vreal result;
    memcpy(&bits, &shifted, sizeof bits);
    bits = 0x3f800000U + (bits << 23);
    memcpy(&result, &bits, sizeof result);
    return result;
#endif
}

#endif

/* The sum of the elements of x, in one fixed order. */
static inline REAL v_sum(vreal x)
{
#if defined(SIMD_AVX512)
    return _mm512_reduce_add_ps(x);
#elif defined(SIMD_AVX2)
    x = _mm256_hadd_ps(x, x);
    x = _mm256_hadd_ps(x, x);
    return _mm256_cvtss_f32(x) + _mm_cvtss_f32(_mm256_extractf128_ps(x, 1));
#elif defined(SIMD_NEON)
    return vaddvq_f32(x);
#elif defined(SIMD_WASM)
    return (x[0] + x[1]) + (x[2] + x[3]);
#else
    return x;
#endif
}

/* sums[i] = the sum of the elements of vectors[i], for i < LANES; each in one fixed order. */
static inline void v_sum_each(const REAL *vectors, REAL *sums)
{
#if defined(SIMD_AVX512)
    /* Each round adds the halves of two vectors and so halves their number. */
    __m512 v[16];
    for (int i = 0; i < 16; i++)
        v[i] = v_load(vectors + i * 16);
    for (int i = 0; i < 8; i++) { /* 256-bit halves of i and i + 8 */
        v[i] =
            _mm512_shuffle_f32x4(v[i], v[i + 8], 0x44) + _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee);
    }
    for (int i = 0; i < 4; i++) { /* 128-bit quarters; lanes now: i, i + 4, i + 8, i + 12 */
        v[i] =
            _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88) + _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
    }
    for (int i = 0; i < 2; i++) /* pairs within the quarters */
        v[i] = _mm512_shuffle_ps(v[i], v[i + 2], 0x44) + _mm512_shuffle_ps(v[i], v[i + 2], 0xee);
    v[0] = _mm512_shuffle_ps(v[0], v[1], 0x88) + _mm512_shuffle_ps(v[0], v[1], 0xdd);
    /* The sums are permuted now; this permutation is its own inverse. */
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    v_store(sums, _mm512_permutexvar_ps(order, v[0]));
#elif defined(SIMD_AVX2)
    __m256 v[8];
    for (int i = 0; i < 8; i++)
        v[i] = v_load(vectors + i * 8);
    for (int i = 0; i < 4; i++)
        v[i] = _mm256_hadd_ps(v[2 * i], v[2 * i + 1]);
    v[0] = _mm256_hadd_ps(v[0], v[1]);
    v[1] = _mm256_hadd_ps(v[2], v[3]);
    v_store(sums,
            _mm256_permute2f128_ps(v[0], v[1], 0x20) + _mm256_permute2f128_ps(v[0], v[1], 0x31));
#elif defined(SIMD_NEON)
    const float32x4_t low = vpaddq_f32(v_load(vectors), v_load(vectors + 4));
    const float32x4_t high = vpaddq_f32(v_load(vectors + 8), v_load(vectors + 12));
    v_store(sums, vpaddq_f32(low, high));
#elif defined(SIMD_WASM)
    for (int i = 0; i < LANES; i++)
        sums[i] = v_sum(v_load(vectors + i * LANES));
#else
    sums[0] = vectors[0];
#endif
}

#endif
