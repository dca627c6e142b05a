/* The kernels as plain loops: the oracle for the vector kernels, used where there are none. The
 * innermost loop always counts PAD independent lanes, which the compiler can vectorise for any
 * processor without reordering a sum. Loops with a call are not unrolled: the copies of the call
 * would take space and save no time. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

/* ---- elementwise ------------------------------------------------------------------------- */

static float silu(float x)
{
    return x / (1.0f + expf(-x)); /* exp is infinite below -88: -0, or NaN for -infinity */
}

/* v_flush of simd.h */
static inline float flush(float x)
{
#if defined(__wasm__)
    return fabsf(x) < 0x1p-63f ? 0.0f : x;
#else
    return x;
#endif
}

static void add(float *restrict y, const float *restrict x, size_t n)
{
    for (size_t i = 0; i < n; i += PAD)
        for (size_t l = 0; l < PAD; l++)
            y[i + l] += x[i + l];
}

static void silu_all(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = silu(x[i]);
}

static void softplus(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) /* above 20 the log adds less than half an ulp; NaN stays */
        x[i] = x[i] > 20.0f || !(x[i] >= -FLT_MAX) ? x[i] : log1pf(expf(x[i]));
}

/* ---- matrix product ---------------------------------------------------------------------- */

/* Rows that share each load of a panel. gcc vectorises this loop over the lanes because it has four
 * rows, named sums for each, and a panel that is indexed from its start. With fewer rows, with
 * sum[rows][lanes] or with a pointer that steps, gcc unrolls first, finds no vectors, and the loop
 * is up to six times slower. */
enum { ROWS = 4 };

/* sum [ROWS, PAD] = bias + panel x. Each sum over `in` runs in order, whichever rows are next to
 * it. */
static inline void panel_times_rows(float sum[ROWS][PAD], const float *const x[ROWS],
                                    const float *const bias[ROWS], const float *restrict panel,
                                    size_t in)
{
    float sum0[PAD], sum1[PAD], sum2[PAD], sum3[PAD];
    for (size_t l = 0; l < PAD; l++) {
        sum0[l] = bias[0][l];
        sum1[l] = bias[1][l];
        sum2[l] = bias[2][l];
        sum3[l] = bias[3][l];
    }
    for (size_t i = 0; i < in; i++) {
        const float x0 = x[0][i], x1 = x[1][i], x2 = x[2][i], x3 = x[3][i];
        for (size_t l = 0; l < PAD; l++) {
            sum0[l] += x0 * panel[i * PAD + l];
            sum1[l] += x1 * panel[i * PAD + l];
            sum2[l] += x2 * panel[i * PAD + l];
            sum3[l] += x3 * panel[i * PAD + l];
        }
    }
    for (size_t l = 0; l < PAD; l++) {
        sum[0][l] = sum0[l];
        sum[1][l] = sum1[l];
        sum[2][l] = sum2[l];
        sum[3][l] = sum3[l];
    }
}

/* Panels outside, rows inside: a panel stays in the first-level cache while the rows pass. The last
 * few rows are computed next to copies of the last one, which are not stored: one code path gives
 * the same bits for any number of rows. */
static void matmul(float *y, size_t y_stride, const float *x, size_t x_stride, size_t rows,
                   const struct linear *linear)
{
    static const float zeros[PAD] = {0};
    const struct linear w = *linear; /* a copy: no store to y may change it */
    for (size_t o = 0; o < w.out; o += PAD) {
        const float *bias = w.bias ? w.bias + o : zeros;
        for (size_t first = 0; first < rows; first += ROWS) {
            const size_t count = rows - first < ROWS ? rows - first : ROWS;
            const float *x_rows[ROWS], *bias_rows[ROWS];
            float sum[ROWS][PAD];
#pragma GCC unroll 1
            for (size_t r = 0; r < ROWS; r++) {
                const size_t row = first + (r < count ? r : count - 1);
                x_rows[r] = x + row * x_stride;
                bias_rows[r] = bias + row * w.bias_stride;
            }
            panel_times_rows(sum, x_rows, bias_rows, w.weight + o * w.in, w.in);
            for (size_t r = 0; r < count; r++)
                memcpy(y + (first + r) * y_stride + o, sum[r], sizeof sum[r]);
        }
    }
}

/* ---- norm ---------------------------------------------------------------------------------- */

/* Sixteen partial sums, then halves onto halves, as vector registers add. */
static float sum_of_squares(const float *x, size_t n)
{
    float sum[PAD] = {0};
    size_t i = 0;
    for (; i + PAD <= n; i += PAD)
        for (size_t l = 0; l < PAD; l++)
            sum[l] += x[i + l] * x[i + l];
#pragma GCC unroll 1 /* only the last few lanes */
    for (size_t l = 0; i + l < n; l++)
        sum[l] += x[i + l] * x[i + l];
    for (size_t half = PAD / 2; half > 0; half /= 2)
        for (size_t l = 0; l < half; l++)
            sum[l] += sum[l + half];
    return sum[0];
}

static void rms_scale(float *scale, const float *x, size_t x_stride, size_t rows, size_t n,
                      float eps)
{
    for (size_t r = 0; r < rows; r++, x += x_stride) {
        const float mean = sum_of_squares(x, n) / (float)n + eps;
        scale[r] = 1.0f / sqrtf(mean) + 0.0f * mean; /* NaN if the sum overflows */
    }
}

static void scale_rows(float *y, size_t y_stride, const float *x, size_t x_stride,
                       const float *scale, size_t rows, size_t n)
{
    for (size_t r = 0; r < rows; r++, x += x_stride, y += y_stride) {
        const float factor = scale[r];
        for (size_t i = 0; i < n; i++)
            y[i] = factor * x[i];
    }
}

static void weighted_sum(float *y, const float *bias, const struct tap *taps, size_t n,
                         size_t stride)
{
    for (size_t d = 0; d < stride; d += PAD) {
        float sum[PAD];
        memcpy(sum, bias + d, sizeof sum);
        for (size_t i = 0; i < n; i++)
            for (size_t l = 0; l < PAD; l++)
                sum[l] += taps[i].weight[d + l] * taps[i].x[d + l];
        memcpy(y + d, sum, sizeof sum);
    }
}

/* ---- the mixer's sequence operations ------------------------------------------------------- */

static size_t token_of_step(struct sequence sequence, size_t step)
{
    return sequence.reverse ? sequence.length - 1 - step : step;
}

/* Inputs before the first step are zero: their taps are skipped. */
static void conv_silu(float *y, const float *x, const float *weight, const float *bias,
                      size_t d_conv, struct sequence sequence)
{
    const size_t stride = sequence.stride;
    for (size_t step = 0; step < sequence.length; step++) {
        struct tap taps[MAX_CONV];
        size_t n = 0;
        for (size_t k = 0; k < d_conv; k++) {
            const size_t back = d_conv - 1 - k;
            if (back <= step)
                taps[n++] = (struct tap){weight + k * stride,
                                         x + token_of_step(sequence, step - back) * stride};
        }
        float *row = y + token_of_step(sequence, step) * stride;
        weighted_sum(row, bias, taps, n, stride);
        silu_all(row, stride);
    }
}

/* One step for PAD channels: h[n] = exp2(delta A[n]) h[n] + delta u B[n]; sum = C h.
 * `state` [d_state, PAD] holds h; rows of `a` are a_stride apart. */
static void scan_step_free(float sum[restrict PAD], float *restrict state, const float *delta,
                           const float *u, const float *b, const float *c, const float *a,
                           size_t a_stride, size_t d_state)
{
    for (size_t l = 0; l < PAD; l++)
        sum[l] = 0.0f;
    for (size_t n = 0; n < d_state; n++, a += a_stride, state += PAD) {
        float decay[PAD];
#pragma GCC unroll 1
        for (size_t l = 0; l < PAD; l++)
            decay[l] = exp2f(delta[l] * a[l]);
        for (size_t l = 0; l < PAD; l++) {
            state[l] = flush(decay[l] * state[l] + delta[l] * u[l] * b[n]);
            sum[l] += c[n] * state[l];
        }
    }
}

/* One step with A[n] = (n + 1) A: one exp, then its powers. */
static void scan_step_tied(float sum[restrict PAD], float *restrict state, const float *delta,
                           const float *u, const float *b, const float *c, const float *a,
                           size_t d_state)
{
    float first[PAD], decay[PAD];
#pragma GCC unroll 1
    for (size_t l = 0; l < PAD; l++)
        first[l] = exp2f(delta[l] * a[l]);
    for (size_t l = 0; l < PAD; l++) {
        sum[l] = 0.0f;
        decay[l] = 1.0f;
    }
    for (size_t n = 0; n < d_state; n++, state += PAD) {
        for (size_t l = 0; l < PAD; l++) {
            decay[l] *= first[l];
            state[l] = flush(decay[l] * state[l] + delta[l] * u[l] * b[n]);
            sum[l] += c[n] * state[l];
        }
    }
}

/* All steps of PAD channels, whose state stays in the first-level cache. */
static void scan_channels(float *y, const struct scan_inputs *in, float *state,
                          struct sequence sequence, size_t first_channel)
{
    const float *a = in->a + first_channel, *d = in->d + first_channel;
    for (size_t i = 0; i < in->d_state * PAD; i++)
        state[i] = 0.0f;
    for (size_t step = 0; step < sequence.length; step++) {
        const size_t token = token_of_step(sequence, step);
        const size_t at = token * sequence.stride + first_channel;
        const float *b = in->b + token * in->bc_stride;
        const float *c = in->c + token * in->bc_stride;
        float sum[PAD];
        if (in->tied)
            scan_step_tied(sum, state, in->delta + at, in->u + at, b, c, a, in->d_state);
        else
            scan_step_free(sum, state, in->delta + at, in->u + at, b, c, a, sequence.stride,
                           in->d_state);
#pragma GCC unroll 1
        for (size_t l = 0; l < PAD; l++)
            y[at + l] = (sum[l] + d[l] * in->u[at + l]) * silu(in->z[at + l]);
    }
}

static void scan(float *y, const struct scan_inputs *inputs, float *state, struct sequence sequence)
{
    for (size_t channel = 0; channel < sequence.stride; channel += PAD)
        scan_channels(y, inputs, state, sequence, channel);
}

const struct mamba_kernels mamba_kernels_scalar = {
    .name = "scalar",
    .matmul = matmul,
    .rms_scale = rms_scale,
    .scale_rows = scale_rows,
    .weighted_sum = weighted_sum,
    .conv_silu = conv_silu,
    .add = add,
    .silu = silu_all,
    .softplus = softplus,
    .scan = scan,
};
