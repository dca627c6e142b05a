/* Compares the kernels of every instruction set that works here with the scalar ones, on random
 * shapes with odd tails, and the elementary functions with libm in double precision, over all
 * magnitudes. */
#include "check.h"
#include "denormals.h"
#include "kernels/kernels.h"
#include "posix_on_windows.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 1;

static double uniform(double low, double high)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (double)(random_state >> 11) / 9007199254740992.0;
}

static size_t between(size_t low, size_t high)
{
    return low + (size_t)uniform(0, (double)(high - low + 1));
}

static size_t pad(size_t n)
{
    return (n + PAD - 1) / PAD * PAD;
}

/* Returns exactly `count` floats, so that ASan sees an overrun, aligned as in a file or arena. */
static float *random_floats(size_t count, double low, double high)
{
    float *data = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
    for (size_t i = 0; i < count; i++)
        data[i] = (float)uniform(low, high);
    return data;
}

static double distance(const float *got, const float *wanted, size_t count)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)got[i] - wanted[i]) * ((double)got[i] - wanted[i]);
        norm += (double)wanted[i] * wanted[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

/* Sums may be fused and in another order. */
static const double TOLERANCE = 1e-6;

static void check_close(const struct mamba_kernels *kernels, const char *what, const float *got,
                        const float *wanted, size_t rows, size_t columns, size_t stride)
{
    for (size_t r = 0; r < rows; r++) {
        const double error = distance(got + r * stride, wanted + r * stride, columns);
        CHECK(error <= TOLERANCE, "%s: %s, row %zu of %zu, %zu columns: relative distance %g",
              kernels->name, what, r, rows, columns, error);
    }
}

/* ---- products and norm --------------------------------------------------------------------- */

struct shape {
    size_t rows, in, out, x_stride, y_stride;
};

static float *magnitudes(const float *data, size_t count)
{
    float *result = random_floats(count, 0, 0);
    for (size_t i = 0; data && i < count; i++)
        result[i] = fabsf(data[i]);
    return result;
}

/* The bias of a product: none, one for all rows, one per row, y itself. */
enum bias_kind { NO_BIAS, ONE_BIAS, BIAS_ROWS, BIAS_IN_Y, BIAS_KINDS };

static void multiply(const struct mamba_kernels *kernels, const struct shape *s, float *y,
                     const float *x, const float *weight, const float *bias, enum bias_kind kind)
{
    const float *const biases[] = {NULL, bias, bias, y};
    const struct linear linear = {
        .weight = weight,
        .bias = biases[kind],
        .bias_stride = kind == ONE_BIAS || kind == NO_BIAS ? 0 : s->y_stride,
        .in = s->in,
        .out = s->out,
    };
    kernels->matmul(y, s->y_stride, x, s->x_stride, s->rows, &linear);
}

/* A row alone gives the same bits. */
static void check_rows_alone(const struct mamba_kernels *kernels, const struct shape *s,
                             const float *x, const float *weight, const float *bias,
                             enum bias_kind kind, const float *together)
{
    struct shape one = *s;
    one.rows = 1;
    float *y = random_floats(s->y_stride, -1, 1);
    for (size_t r = 0; r < s->rows; r++) {
        const float *row_bias = kind == ONE_BIAS ? bias : bias + r * s->y_stride;
        memcpy(y, row_bias, pad(s->out) * sizeof *y);
        multiply(kernels, &one, y, x + r * s->x_stride, weight, row_bias, kind);
        CHECK(memcmp(y, together + r * s->y_stride, s->out * sizeof *y) == 0,
              "%s: row %zu of %zu differs by itself", kernels->name, r, s->rows);
    }
    free(y);
}

/* Each sum of n terms may be off by n half ulps of the sum of their magnitudes. */
static void test_product(const struct mamba_kernels *kernels, const struct shape *s,
                         enum bias_kind kind)
{
    const size_t size = s->rows * s->y_stride, x_size = s->rows * s->x_stride;
    float *x = random_floats(x_size, -1, 1), *weight = random_floats(pad(s->out) * s->in, -1, 1);
    float *bias = random_floats(size, -1, 1);
    float *arrays[] = {random_floats(size, 0, 0), random_floats(size, 0, 0),
                       magnitudes(bias, size),    magnitudes(bias, size),
                       magnitudes(x, x_size),     magnitudes(weight, pad(s->out) * s->in)};
    float *got = arrays[0], *wanted = arrays[1], *scale = arrays[2];
    memcpy(got, bias, size * sizeof *got);
    memcpy(wanted, bias, size * sizeof *got);
    multiply(kernels, s, got, x, weight, bias, kind);
    multiply(&mamba_kernels_scalar, s, wanted, x, weight, bias, kind);
    multiply(&mamba_kernels_scalar, s, scale, arrays[4], arrays[5], arrays[3], kind);
    double worst = 0;
    for (size_t i = 0; i < size; i++) {
        if (i % s->y_stride < s->out)
            worst = fmax(worst, fabs((double)got[i] - wanted[i]) / scale[i]);
    }
    CHECK(worst <= 6e-8 * (double)(s->in + 2),
          "%s: %zu x %zu x %zu, bias %d: off by %g of its terms", kernels->name, s->rows, s->in,
          s->out, kind, worst);
    check_rows_alone(kernels, s, x, weight, bias, kind, got);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
    free(x), free(weight), free(bias);
}

/* Every third product has few outputs in its last panel and a multiple of four inputs, as x_proj.
 */
static void test_products(const struct mamba_kernels *kernels)
{
    for (int i = 0; i < 400; i++) {
        struct shape s = {.rows = between(1, 20), .in = between(1, 70), .out = between(1, 100)};
        if (i % 3 == 0) {
            s.in = 4 * between(1, 20);
            s.out = 16 * between(0, 4) + between(1, 4);
        }
        s.x_stride = pad(s.in) + PAD * between(0, 1);
        s.y_stride = pad(s.out) + PAD * between(0, 1);
        test_product(kernels, &s, (enum bias_kind)between(0, BIAS_KINDS - 1));
    }
}

static void test_norm(const struct mamba_kernels *kernels)
{
    for (int i = 0; i < 100; i++) {
        const size_t rows = between(1, 20), n = between(1, 70), stride = pad(n);
        const size_t x_stride = stride * between(1, 3);
        float *x =
            random_floats(rows * x_stride, -1, 1); /* padding included, which must not count */
        float *got = random_floats(rows, -1, 1), *wanted = random_floats(rows, -1, 1);
        kernels->rms_scale(got, x, x_stride, rows, n, 1e-5f);
        mamba_kernels_scalar.rms_scale(wanted, x, x_stride, rows, n, 1e-5f);
        check_close(kernels, "rms_scale", got, wanted, rows, 1, 1);
        free(x), free(got), free(wanted);
    }
}

/* A single product has one possible result, in place or not. */
static void test_scale_rows(const struct mamba_kernels *kernels)
{
    for (int i = 0; i < 50; i++) {
        const size_t rows = between(1, 20), n = PAD * between(1, 5);
        const size_t x_stride = n * between(1, 3), y_stride = n * between(1, 3);
        float *x = random_floats(rows * x_stride, -1, 1), *scale = random_floats(rows, -2, 2);
        float *y = random_floats(rows * y_stride, -1, 1);
        kernels->scale_rows(y, y_stride, x, x_stride, scale, rows, n);
        for (size_t r = 0; r < rows; r++)
            for (size_t d = 0; d < n; d++)
                CHECK(y[r * y_stride + d] == scale[r] * x[r * x_stride + d],
                      "%s: scale_rows, row %zu, %zu", kernels->name, r, d);
        kernels->scale_rows(x, x_stride, x, x_stride, scale, rows, n);
        for (size_t r = 0; r < rows; r++)
            CHECK(memcmp(x + r * x_stride, y + r * y_stride, n * sizeof *x) == 0,
                  "%s: scale_rows in place, row %zu", kernels->name, r);
        free(x), free(scale), free(y);
    }
}

/* ---- sequences ------------------------------------------------------------------------------ */

static struct sequence random_sequence(size_t channels)
{
    return (struct sequence){
        .length = between(1, 40), .stride = pad(channels), .reverse = between(0, 1) != 0};
}

static void test_conv(const struct mamba_kernels *kernels)
{
    for (int i = 0; i < 150; i++) {
        const struct sequence sequence = random_sequence(between(1, 50));
        const size_t d_conv = i % 3 == 0 ? 4 : between(1, 16);
        const size_t size = sequence.length * sequence.stride;
        float *x = random_floats(size, -3, 3);
        float *weight = random_floats(d_conv * sequence.stride, -1, 1);
        float *bias = random_floats(sequence.stride, -1, 1);
        float *got = random_floats(size, -1, 1), *wanted = random_floats(size, -1, 1);
        kernels->conv_silu(got, x, weight, bias, d_conv, sequence);
        mamba_kernels_scalar.conv_silu(wanted, x, weight, bias, d_conv, sequence);
        check_close(kernels, "conv_silu", got, wanted, 1, size, size);
        free(x), free(weight), free(bias), free(got), free(wanted);
    }
}

static void test_weighted_sum(const struct mamba_kernels *kernels)
{
    for (int i = 0; i < 100; i++) {
        const size_t n = between(0, 9), stride = pad(between(1, 50));
        float *x = random_floats(9 * stride, -3, 3), *weight = random_floats(9 * stride, -1, 1);
        float *bias = random_floats(stride, -1, 1);
        float *got = random_floats(stride, 7, 8), *wanted = random_floats(stride, 7, 8);
        struct tap taps[9];
        for (size_t t = 0; t < n; t++)
            taps[t] = (struct tap){weight + t * stride, x + t * stride};
        kernels->weighted_sum(got, bias, taps, n, stride);
        mamba_kernels_scalar.weighted_sum(wanted, bias, taps, n, stride);
        check_close(kernels, "weighted_sum", got, wanted, 1, stride, stride);
        free(x), free(weight), free(bias), free(got), free(wanted);
    }
}

/* A single sum has one possible result. */
static void test_add(const struct mamba_kernels *kernels)
{
    for (int i = 0; i < 50; i++) {
        const size_t n = PAD * between(1, 20);
        float *x = random_floats(n, -1, 1), *got = random_floats(n, -1, 1);
        float *wanted = random_floats(n, 0, 0);
        for (size_t j = 0; j < n; j++)
            wanted[j] = got[j] + x[j];
        kernels->add(got, x, n);
        CHECK(memcmp(got, wanted, n * sizeof *got) == 0, "%s: add of %zu", kernels->name, n);
        free(x), free(got), free(wanted);
    }
}

/* delta ranges from almost 0 to where a step forgets every state. */
static void test_scans(const struct mamba_kernels *kernels)
{
    for (int i = 0; i < 200; i++) {
        const struct sequence sequence = random_sequence(between(1, 50));
        const size_t size = sequence.length * sequence.stride, stride = sequence.stride;
        const bool tied = i % 2 == 0;
        const size_t d_state = i % 4 < 2 ? 16 : between(1, 40);
        const size_t bc_stride = pad(2 * d_state);
        const double longest = i % 5 == 0 ? 30 : 0.3;
        float *u = random_floats(size, -1, 1), *z = random_floats(size, -4, 4);
        float *delta = random_floats(size, 0, longest);
        float *bc = random_floats(sequence.length * bc_stride, -1, 1);
        float *a = random_floats((tied ? 1 : d_state) * stride, tied ? -2 : -20, -0.1);
        float *d = random_floats(stride, -1, 1), *state = random_floats(d_state * PAD, 7, 8);
        float *got = random_floats(size, 7, 8), *wanted = random_floats(size, 7, 8);
        const struct scan_inputs inputs = {u,         z, delta, bc,      bc + d_state,
                                           bc_stride, a, d,     d_state, tied};
        kernels->scan(got, &inputs, state, sequence);
        mamba_kernels_scalar.scan(wanted, &inputs, state, sequence);
        check_close(kernels, tied ? "tied scan" : "free scan", got, wanted, 1, size, size);
        free(u), free(z), free(delta), free(bc), free(a), free(d), free(state), free(got);
        free(wanted);
    }
}

/* ---- elementary functions ------------------------------------------------------------------- */

static double exact_silu(double x)
{
    return x / (1 + exp(-x));
}

static double exact_softplus(double x)
{
    return x > 700 ? x : log1p(exp(x));
}

/* Returns the distance from `value` to the next float, at least that of the smallest normal float.
 */
static double ulp(double value)
{
    int exponent;
    frexp(fmax(fabs(value), 0x1p-126), &exponent);
    return ldexp(1, exponent - 24);
}

/* Returns the allowed error. Both functions use e^x for negative x, whose argument x log2(e) has
 * the rounding of the product and of the constant: at most 1.25 |x| ulp of the result, and 4 for
 * everything else. Where a factor, e^x or half of it, would be denormal, it counts as zero. */
static double allowed(double x, double exact)
{
    if (x < -86 || fabs(exact) < 0x1p-126)
        return 0x1p-125 * fmax(1, fabs(x));
    return (4 + 1.25 * fmax(0, -x)) * ulp(exact);
}

/* Returns the largest error relative to the allowed one, over every 997th float except NaN and
 * infinity; over every 9973rd where the test is slow. */
static double largest_error(void (*function)(float *, size_t), double (*exact)(double))
{
#ifdef __SANITIZE_ADDRESS__
    const uint64_t step = 9973;
#else
    const uint64_t step = only_a_sample() ? 9973 : 997;
#endif
    double largest = 0;
    uint64_t bits = 0;
    while (bits <= UINT32_MAX) {
        float x[PAD], y[PAD];
        for (size_t i = 0; i < PAD; i++, bits += step) {
            const uint32_t pattern = (uint32_t)(bits <= UINT32_MAX ? bits : 0);
            memcpy(&x[i], &pattern, sizeof pattern);
            if ((pattern & 0x7f800000u) == 0x7f800000u)
                x[i] = 0;
        }
        memcpy(y, x, sizeof y);
        function(y, PAD);
        for (size_t i = 0; i < PAD; i++) {
            const double wanted = exact((double)x[i]);
            const double error = fabs((double)y[i] - wanted) / allowed((double)x[i], wanted);
            largest = error <= largest ? largest : error; /* a NaN stays */
        }
    }
    return largest;
}

static void test_functions(const struct mamba_kernels *kernels)
{
    const double silu = largest_error(kernels->silu, exact_silu);
    const double softplus = largest_error(kernels->softplus, exact_softplus);
    printf("%s: largest error relative to the allowed one: silu %.2f, softplus %.2f\n",
           kernels->name, silu, softplus);
    CHECK(silu <= 1, "%s: silu is off by %g times what is allowed", kernels->name, silu);
    CHECK(softplus <= 1, "%s: softplus is off by %g times what is allowed", kernels->name,
          softplus);
}

/* NaN and infinity stay visible; a number stays a number. */
static void test_special_values(const struct mamba_kernels *kernels)
{
    float silu[PAD] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f}, softplus[PAD];
    memcpy(softplus, silu, sizeof silu);
    kernels->silu(silu, PAD);
    kernels->softplus(softplus, PAD);
    for (size_t i = 0; i < 3; i++)
        CHECK(!isfinite(silu[i]) && !isfinite(softplus[i]), "%s: %zu: silu %g, softplus %g",
              kernels->name, i, (double)silu[i], (double)softplus[i]);
    CHECK(silu[3] == 1e30f && silu[4] == 0.0f, "%s: silu %g, %g", kernels->name, (double)silu[3],
          (double)silu[4]);
    CHECK(softplus[3] == 1e30f && softplus[4] == 0.0f, "%s: softplus %g, %g", kernels->name,
          (double)softplus[3], (double)softplus[4]);
    const float huge[2 * PAD] = {[0] = 1.5e19f, [1] = 1.5e19f, [PAD] = 1e19f, [PAD + 1] = 1e19f};
    float scale[2];
    kernels->rms_scale(scale, huge, PAD, 2, 2, 1e-5f);
    CHECK(!isfinite(scale[0]) && fabsf(scale[1] * 1e19f - 1.0f) < 1e-6f,
          "%s: scales %g and %g of sums of squares above and below the largest float",
          kernels->name, (double)scale[0], (double)scale[1]);
}

/* A decay below the smallest normal number forgets any state, and one above the largest float is
 * not a number, even when the state is 0. */
static void test_decays(const struct mamba_kernels *kernels, bool tied)
{
    enum { LENGTH = 2, STATES = 3 };
    const struct sequence sequence = {.length = LENGTH, .stride = PAD};
    volatile float smallest = 0x1p-126f;
    const bool keeps_denormals = smallest / 2.0f != 0.0f; /* denormals.h has no mode here */
#if defined(__SSE__) || defined(__ARM_FP)
    CHECK(!keeps_denormals, "denormals count in the mode of denormals.h");
#endif
    const float decays[] = {-127.5f, -200.0f, -3e38f, -INFINITY, 127.0f, 128.5f, 200.0f, 3e38f};
    const float bc[2 * STATES * LENGTH] = {[0] = 1, [STATES] = 1, [3 * STATES] = 1};
    for (size_t i = 0; i < sizeof decays / sizeof *decays; i++) {
        float u[LENGTH * PAD], z[LENGTH * PAD], delta[LENGTH * PAD], y[LENGTH * PAD];
        float a[STATES * PAD], d[PAD] = {0}, state[STATES * PAD];
        for (size_t lane = 0; lane < PAD; lane++) {
            u[lane] = 1e37f; /* only the first step has an input, for the first state */
            u[PAD + lane] = 0.0f;
            z[lane] = z[PAD + lane] = 1.0f;
            delta[lane] = delta[PAD + lane] = 1.0f;
            for (size_t n = 0; n < STATES; n++)
                a[n * PAD + lane] = n == 0 ? decays[i] : -1.0f;
        }
        const struct scan_inputs inputs = {
            u,   z,           delta,
            bc,  bc + STATES, 2 * STATES,
            a,   d,           tied ? 1 : STATES, /* no powers of the decay */
            tied};
        kernels->scan(y, &inputs, state, sequence);
        for (size_t lane = 0; lane < PAD && decays[i] < 0; lane++)
            CHECK(y[lane] > 7e36f && (y[PAD + lane] == 0.0f || (keeps_denormals && i == 0)),
                  "%s: 2^%g: got %g, then %g", kernels->name, (double)decays[i], (double)y[lane],
                  (double)y[PAD + lane]);
        for (size_t lane = 0; lane < PAD && decays[i] > 0; lane++)
            CHECK(isfinite(y[lane]) == (decays[i] < 128.0f), "%s: 2^%g: got %g", kernels->name,
                  (double)decays[i], (double)y[lane]);
    }
}

#if defined(__x86_64__)
/* No kernels are chosen that a processor lacks a feature for, or whose registers the system does
 * not save. */
static void test_choice(void)
{
    const unsigned fma = 1u << 12, avx2 = 1u << 5, f = 1u << 16, dq = 1u << 17;
    const struct {
        struct mamba_x86 cpu;
        const struct mamba_kernels *best;
        bool has_avx2;
    } cases[] = {
        {{fma, avx2 | f | dq, 0xE7}, &mamba_kernels_avx512, true},
        {{fma, avx2 | f, 0xE7}, &mamba_kernels_avx2, true},
        {{fma, avx2 | dq, 0xE7}, &mamba_kernels_avx2, true},
        {{fma, avx2 | f | dq, 0x67}, &mamba_kernels_avx2, true},
        {{fma, avx2 | f | dq, 0xA7}, &mamba_kernels_avx2, true},
        {{fma, avx2 | f | dq, 0xC7}, &mamba_kernels_avx2, true},
        {{fma, avx2, 0x06}, &mamba_kernels_avx2, true},
        {{fma, avx2 | f | dq, 0xE2}, &mamba_kernels_scalar, false},
        {{fma, avx2 | f | dq, 0xE4}, &mamba_kernels_scalar, false},
        {{fma, f | dq, 0xE7}, &mamba_kernels_scalar, false},
        {{~fma, avx2 | f | dq, 0xE7}, &mamba_kernels_scalar, false},
        {{0, 0, 0}, &mamba_kernels_scalar, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct mamba_kernels *best = mamba_choose_x86_kernels(cases[i].cpu, NULL);
        CHECK(best == cases[i].best, "processor %zu: got %s", i, best->name);
        const bool has_avx512 = cases[i].best == &mamba_kernels_avx512;
        CHECK(mamba_choose_x86_kernels(cases[i].cpu, "avx512") ==
                  (has_avx512 ? &mamba_kernels_avx512 : NULL),
              "processor %zu: avx512", i);
        CHECK(mamba_choose_x86_kernels(cases[i].cpu, "avx2") ==
                  (cases[i].has_avx2 ? &mamba_kernels_avx2 : NULL),
              "processor %zu: avx2", i);
        CHECK(mamba_choose_x86_kernels(cases[i].cpu, "scalar") == &mamba_kernels_scalar,
              "processor %zu: scalar", i);
    }
}
#endif

int main(void)
{
    const char *const names[] = {"scalar", "neon", "avx2", "avx512"};
    denormals_off();
    CHECK(mamba_choose_kernels("mmx") == NULL, "an unknown instruction set was chosen");
    CHECK(mamba_choose_kernels(NULL) != NULL, "none was chosen");
#if defined(__x86_64__)
    test_choice();
#endif
    CHECK(mamba_choose_kernels("") == mamba_choose_kernels(NULL),
          "an empty name is not the default");
#if defined(__aarch64__)
    CHECK(mamba_choose_kernels(NULL) == mamba_choose_kernels("neon"), "arm64 without NEON");
#endif
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct mamba_kernels *kernels = mamba_choose_kernels(names[i]);
        if (!kernels)
            continue;
        CHECK(strcmp(kernels->name, names[i]) == 0, "got %s for %s", kernels->name, names[i]);
        test_products(kernels);
        test_norm(kernels);
        test_scale_rows(kernels);
        test_conv(kernels);
        test_scans(kernels);
        test_functions(kernels);
        test_special_values(kernels);
        test_decays(kernels, false);
        test_decays(kernels, true);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct mamba_kernels *kernels = mamba_choose_kernels(names[i]);
        if (!kernels)
            continue;
        test_weighted_sum(kernels);
        test_add(kernels);
    }
    return check_summary();
}
