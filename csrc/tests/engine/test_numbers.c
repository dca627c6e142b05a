/* Numbers at the limits of a float: sums that overflow are an error with every instruction set, the
 * fold does not change the limits, and the caller's floating-point mode does not matter. */
#define _POSIX_C_SOURCE 200809L

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "check.h"
#include "model.h"
#include "posix_on_windows.h"
#include "reference.h"

enum { MAX_CLASSES = 256, PIXELS = 7 * 9 };

static const char *const ISAS[] = {"scalar", "avx2", "avx512", "neon"};
enum { N_ISAS = sizeof ISAS / sizeof *ISAS };

/* Opens `tiny` with an instruction set, or with the default one if `isa` is NULL; returns NULL if
 * this processor lacks it. */
static mamba_model *open_with(const struct tiny_model *tiny, const char *isa)
{
    char kept[20] = "";
    const char *wanted = getenv("MAMBA_ISA");
    if (wanted)
        snprintf(kept, sizeof kept, "%s", wanted);
    if (isa)
        setenv("MAMBA_ISA", isa, 1);
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    const mamba_status status = mamba_model_from_bytes(&model, tiny->bytes, tiny->size, &error);
    CHECK(status == MAMBA_OK || (isa && status == MAMBA_ERR_ARGUMENT), "%s", error.message);
    if (wanted)
        setenv("MAMBA_ISA", kept, 1);
    else
        unsetenv("MAMBA_ISA");
    return model;
}

static mamba_status forward(const mamba_model *model, const float *pixels, float *logits)
{
    const size_t bytes = mamba_context_bytes(model);
    void *arena = malloc(bytes);
    mamba_context *context;
    if (mamba_context_init(&context, model, arena, bytes, NULL) != MAMBA_OK)
        abort();
    const mamba_status status = mamba_forward(context, pixels, logits);
    free(arena);
    return status;
}

static double relative_distance(const float *got, const double *expected, size_t n)
{
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += pow((double)got[i] - expected[i], 2.0);
        size += pow(expected[i], 2.0);
    }
    return sqrt(difference / size);
}

/* Multiplies floats `first` to `first + n` of the tensors; no result exceeds the largest float. */
static void scale_floats(struct tiny_model *tiny, size_t first, size_t n, float factor)
{
    for (size_t i = first; i < first + n; i++) {
        float value;
        memcpy(&value, tiny->bytes + tiny->tensors + i * sizeof value, sizeof value);
        value = fmaxf(-FLT_MAX, fminf(FLT_MAX, value * factor));
        tiny_put_f32(tiny, tiny->tensors + i * sizeof value, value);
    }
}

/* ---- overflow ------------------------------------------------------------------------------ */

/* Multiplies one to three stretches of the weights by powers of two of either sign. */
static void rescale(struct tiny_model *tiny, uint32_t *random)
{
    const size_t floats = (tiny->size - tiny->tensors) / sizeof(float);
    for (int stretch = (int)(2.0f + 1.5f * tiny_random(random)); stretch >= 0; stretch--) {
        const size_t first = (size_t)((float)floats * fabsf(tiny_random(random)) * 0.999f);
        const size_t n = 16 * (size_t)(1.0f + 30.0f * fabsf(tiny_random(random)));
        const float power = tiny_random(random);
        const float factor = ldexpf(1.0f, (int)(126.0f * power * fabsf(power)));
        scale_floats(tiny, first, n < floats - first ? n : floats - first,
                     tiny_random(random) < 0.0f ? -factor : factor);
    }
    tiny_seal(tiny);
}

/* An overflow anywhere is an error, with every instruction set; logits without one are right. Near
 * the largest float, where a sum's order and rounding decide, either is allowed. */
static void test_overflow(void)
{
    uint32_t random = 1;
    size_t answered = 0, refused = 0, near = 0;
    for (uint32_t trial = 0; trial < 480; trial++) {
        mamba_info dims = varied(trial % 96);
        dims.pool = 0; /* so that every token counts */
        dims.norm_eps = trial % 5 ? dims.norm_eps : 1e-37f;
        struct tiny_model tiny = tiny_build(dims, trial);
        struct magnitudes largest;
        float pixels[PIXELS], logits[MAX_CLASSES];
        for (size_t i = 0; i < PIXELS; i++)
            pixels[i] = fabsf(tiny_random(&random));
        rescale(&tiny, &random);
        const double *expected = reference(&tiny, pixels, &largest);
        const bool must_answer = largest.terms < 0x1p120, must_refuse = largest.value > 0x1p136;
        near += !must_answer && !must_refuse;
        for (size_t i = 0; i < N_ISAS && (must_answer || must_refuse); i++) {
            mamba_model *model = open_with(&tiny, ISAS[i]);
            if (!model)
                continue;
            const mamba_status status = forward(model, pixels, logits);
            CHECK(status == (must_answer ? MAMBA_OK : MAMBA_ERR_MODEL),
                  "%s, model %u: status %d, the largest value is %g", ISAS[i], trial, status,
                  largest.value);
            if (status == MAMBA_OK && dims.d_model > 1) /* the norm of one value is its sign */
                CHECK(relative_distance(logits, expected, dims.n_classes) < 1e-4,
                      "%s, model %u: other logits", ISAS[i], trial);
            answered += status == MAMBA_OK;
            refused += status == MAMBA_ERR_MODEL;
            mamba_model_close(model);
        }
        tiny_free(&tiny);
    }
    printf("weights of any size: %zu answers, %zu errors, %zu near the limit\n", answered, refused,
           near);
    CHECK(answered > 100 && refused > 100 && near < 50, "too few of each kind");
}

/* ---- single overflows ---------------------------------------------------------------------- */

/* Floats of the tensors of a model of one pixel, d_model 2, and else 1 of everything. */
enum {
    STEM = 0,
    STEM_BIAS = 16,
    IN_PROJ_X = 32,
    IN_PROJ_Z = 64,
    CONV = 96,
    CONV_BIAS = 112,
    X_PROJ = 128,
    DT_PROJ = 144,
    DT_BIAS = 160,
    A = 176,
    D = 192,
    OUT_PROJ = 208,
    HEAD = 224,
    HEAD_BIAS = 256,
    MEMBER = 272
};

static struct tiny_model smallest(uint32_t members)
{
    mamba_info dims = tiny_dims();
    dims.height = dims.width = dims.patch_height = dims.patch_width = 1;
    dims.n_classes = dims.d_model = 2;
    dims.n_layers = dims.d_state = dims.d_conv = dims.d_inner = dims.dt_rank = 1;
    dims.pixel_mean = 0.0f;
    dims.pixel_std = 1.0f;
    dims.members = members;
    struct tiny_model tiny = tiny_build(dims, 1);
    static const float values[][3] = {
        {STEM, 1.0f, 0.5f},
        {STEM_BIAS, 0.0f, 0.25f},
        {CONV, 1.0f},
        {CONV_BIAS, 0.0f},
        {X_PROJ, 1.0f, 0.5f},
        {DT_PROJ, 1.0f},
        {DT_BIAS, 0.0f},
        {A, -1.0f},
        {D, 1.0f},
        {OUT_PROJ, 1.0f, 0.5f},
        {HEAD, 1.0f, -1},
        {HEAD_BIAS, 0, 0},
        {IN_PROJ_X, 1.0f, 0.0f},
    };
    for (uint32_t member = 0; member < members; member++)
        for (size_t i = 0; i < sizeof values / sizeof *values; i++)
            for (size_t j = 0; j < 2; j++)
                tiny_put_f32(&tiny, tiny.tensors + 4 * (member * MEMBER + (size_t)values[i][0] + j),
                             values[i][1 + j]);
    return tiny;
}

/* Each stage overflows by itself, to an infinity that its function makes a number again. */
static void test_single_overflows(void)
{
    static const struct {
        const char *name;
        struct {
            int at;
            float value;
        } floats[3];
        mamba_status status;
    } cases[] = {
        {"nothing", {{A, -1.0f}}, MAMBA_OK},
        {"squares of x", {{STEM, 1e20f}}, MAMBA_ERR_MODEL},
        {"squares before the head", {{OUT_PROJ, 1e20f}}, MAMBA_ERR_MODEL},
        {"xs, before SiLU", {{IN_PROJ_X, -3e38f}, {IN_PROJ_X + 16, -3e38f}}, MAMBA_ERR_MODEL},
        {"conv1d, before SiLU", {{CONV, -3e38f}, {CONV_BIAS, -3e38f}}, MAMBA_ERR_MODEL},
        {"z, before SiLU", {{IN_PROJ_Z, -3e38f}, {IN_PROJ_Z + 16, -3e38f}}, MAMBA_ERR_MODEL},
        {"dt, before softplus", {{DT_PROJ, -3e38f}, {DT_BIAS, -3e38f}}, MAMBA_ERR_MODEL},
        {"a decay of 0", {{A, 200.0f}, {DT_BIAS, 5.0f}}, MAMBA_ERR_MODEL},
        {"a decay's exponent, below 0", {{A, -3e38f}, {DT_BIAS, 5.0f}}, MAMBA_OK},
        {"logits", {{HEAD, 3e38f}, {HEAD + 16, 3e38f}, {HEAD_BIAS, 3e38f}}, MAMBA_ERR_MODEL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tiny_model tiny = smallest(1);
        const float pixel = 1.0f;
        float logits[2];
        for (size_t j = 0; j < 3; j++)
            if (cases[i].floats[j].value != 0.0f)
                tiny_put_f32(&tiny, tiny.tensors + 4 * (size_t)cases[i].floats[j].at,
                             cases[i].floats[j].value);
        tiny_seal(&tiny);
        for (size_t isa = 0; isa < N_ISAS; isa++) {
            mamba_model *model = open_with(&tiny, ISAS[isa]);
            if (!model)
                continue;
            const mamba_status status = forward(model, &pixel, logits);
            CHECK(status == cases[i].status, "%s: %s: status %d", ISAS[isa], cases[i].name, status);
            if (status == MAMBA_OK)
                CHECK(relative_distance(logits, reference(&tiny, &pixel, NULL), 2) < 1e-6,
                      "%s: %s: other logits", ISAS[isa], cases[i].name);
            mamba_model_close(model);
        }
        tiny_free(&tiny);
    }
}

/* The sum of the members' logits overflows, their mean would not. */
static void test_ensemble(void)
{
    struct tiny_model tiny = smallest(2);
    const float pixel = 1.0f;
    float logits[2];
    for (size_t member = 0; member < 2; member++)
        tiny_put_f32(&tiny, tiny.tensors + 4 * (member * MEMBER + HEAD_BIAS), 3e38f);
    tiny_seal(&tiny);
    mamba_model *model = open_with(&tiny, NULL);
    CHECK(forward(model, &pixel, logits) == MAMBA_ERR_MODEL, "got %g", (double)logits[0]);
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* ---- the fold ------------------------------------------------------------------------------ */

/* A model whose first in_proj is folded. */
static struct tiny_model foldable(void)
{
    mamba_info dims = varied(2);
    dims.local_conv = 0;
    dims.patch_height = dims.patch_width = 1;
    dims.d_model = 24;
    dims.members = 2;
    return tiny_build(dims, 3);
}

/* Places of the tensors of the first member of `foldable`, in floats; how many tensors a fold
 * multiplies; and floats of a member. */
struct folded_tensors {
    size_t first[5], n[5], conv_weight, conv_floats, member;
};

static struct folded_tensors find_tensors(const struct tiny_model *tiny)
{
    const mamba_info *m = &tiny->dims;
    const size_t d_model = (size_t)mamba_pad(m->d_model), d_inner = (size_t)mamba_pad(m->d_inner);
    struct folded_tensors found = {
        /* stem.weight, stem.bias, pos_embed, in_proj.x, in_proj.z */
        .n = {d_model, d_model, m->length * d_model, d_inner * m->d_model, d_inner * m->d_model},
        .conv_floats = m->d_conv * d_inner,
        .member = (tiny->size - tiny->tensors) / sizeof(float) / m->members,
    };
    for (size_t i = 0; i < 5; i++) {
        found.first[i] = found.conv_weight;
        found.conv_weight += found.n[i];
    }
    return found;
}

static void expect_fold(const struct tiny_model *tiny, bool folded, const char *what)
{
    mamba_model *model = open_with(tiny, NULL);
    if (model)
        CHECK((model->folds != NULL) == folded, "%s: folded: %d", what, !folded);
    mamba_model_close(model);
}

/* One weight of any tensor, or a pixel, outside 2^-40..2^20 prevents a fold; so do a small norm_eps
 * and a small pixel_mean, from which a float pixel can differ by less than 2^-40 pixel_std. */
static void test_safe_folds(void)
{
    struct tiny_model tiny = foldable();
    const struct folded_tensors tensors = find_tensors(&tiny);
    tiny_seal(&tiny);
    expect_fold(&tiny, true, "as it is");
    for (size_t i = 0; i < 10; i++) {
        const size_t place = tensors.first[i % 5] + tensors.n[i % 5] - 16 + i / 5 * tensors.member;
        const size_t offset = tiny.tensors + 4 * place;
        const uint32_t good = tiny_get_u32(&tiny, offset);
        const float good_too[] = {0.0f, -0.0f, 0x1p-40f, -0x1p20f};
        const float bad[] = {0x1.fffffep-41f, -0x1.000002p20f, 1e-45f, -FLT_MAX};
        for (size_t j = 0; j < 4; j++) {
            char what[60];
            snprintf(what, sizeof what, "tensor %zu, value %zu", i, j);
            tiny_put_f32(&tiny, offset, good_too[j]);
            tiny_seal(&tiny);
            expect_fold(&tiny, true, what);
            tiny_put_f32(&tiny, offset, bad[j]);
            tiny_seal(&tiny);
            expect_fold(&tiny, false, what);
        }
        tiny_put_u32(&tiny, offset, good);
    }
    const struct {
        const char *name;
        size_t offset;
        float bad;
        float good;
    } fields[] = {{"norm_eps", 180, 0x1.fffffep-25f, 0x1p-24f},
                  {"pixel_mean", 52, 0.0f, 0x1p-15f},
                  {"pixel_mean", 52, 0x1.fffffep-16f, 0x1p-15f}};
    tiny_put_f32(&tiny, 56, 1.0f); /* pixel_std */
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const uint32_t good = tiny_get_u32(&tiny, fields[i].offset);
        tiny_put_f32(&tiny, fields[i].offset, fields[i].bad);
        tiny_seal(&tiny);
        expect_fold(&tiny, false, fields[i].name);
        tiny_put_f32(&tiny, fields[i].offset, fields[i].good);
        tiny_seal(&tiny);
        expect_fold(&tiny, true, fields[i].name);
        tiny_put_u32(&tiny, fields[i].offset, good);
    }
    tiny_free(&tiny);
}

/* The logits are those of the formulas where the product of stem and in_proj would underflow or
 * overflow. conv1d brings xs back to its size. */
static void test_extreme_folds(void)
{
    const struct {
        float stem, in_proj, norm_eps;
    } cases[] = {
        {0x1p-60f, 0x1p-70f, 1e-37f}, {0x1p50f, 0x1p80f, 1e-5f}, {0x1p-60f, 0x1p60f, 1e-37f}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tiny_model tiny = foldable();
        const struct folded_tensors tensors = find_tensors(&tiny);
        float pixels[PIXELS], logits[MAX_CLASSES];
        for (size_t member = 0; member < 2; member++) {
            const size_t first = member * tensors.member;
            for (size_t t = 0; t < 3; t++)
                scale_floats(&tiny, first + tensors.first[t], tensors.n[t], cases[i].stem);
            scale_floats(&tiny, first + tensors.first[3], tensors.n[3], cases[i].in_proj);
            scale_floats(&tiny, first + tensors.conv_weight, tensors.conv_floats,
                         1.0f / cases[i].in_proj);
        }
        tiny.dims.norm_eps = cases[i].norm_eps;
        for (size_t member = 0; member < 2; member++)
            tiny_put_f32(&tiny, 180 + member * TINY_RECORD, cases[i].norm_eps);
        tiny_seal(&tiny);
        for (size_t pixel = 0; pixel < PIXELS; pixel++)
            pixels[pixel] = (float)pixel / (float)PIXELS;
        const double *expected = reference(&tiny, pixels, NULL);
        for (size_t isa = 0; isa < N_ISAS; isa++) {
            mamba_model *model = open_with(&tiny, ISAS[isa]);
            if (!model)
                continue;
            CHECK(forward(model, pixels, logits) == MAMBA_OK, "%s, case %zu", ISAS[isa], i);
            CHECK(relative_distance(logits, expected, tiny.dims.n_classes) < 1e-5,
                  "%s, case %zu: %g off", ISAS[isa], i,
                  relative_distance(logits, expected, tiny.dims.n_classes));
            mamba_model_close(model);
        }
        tiny_free(&tiny);
    }
}

/* ---- the floating-point mode ---------------------------------------------------------------- */

/* A denormal norm_eps and a token of zeros: the norm is 0, not NaN. */
static void test_denormal_eps(void)
{
    struct tiny_model tiny = smallest(1);
    const float black = 0.0f;
    float logits[2];
    tiny_put_f32(&tiny, 180, 1e-45f);
    scale_floats(&tiny, STEM_BIAS, 2, 0.0f);
    tiny_put_f32(&tiny, tiny.tensors + 4 * HEAD_BIAS, 0.25f);
    tiny_seal(&tiny);
    for (size_t isa = 0; isa < N_ISAS; isa++) {
        mamba_model *model = open_with(&tiny, ISAS[isa]);
        if (!model)
            continue;
        CHECK(forward(model, &black, logits) == MAMBA_OK && logits[0] == 0.25f && logits[1] == 0.0f,
              "%s: %g, %g", ISAS[isa], (double)logits[0], (double)logits[1]);
        mamba_model_close(model);
    }
    tiny_free(&tiny);
}

#if defined(__SSE__)
enum { DEFAULT_MODE = 0x1F80, ROUND_UP = 0x4000, FLUSH = 0x8000, DENORMALS_ARE_ZERO = 0x0040 };
enum { TRAP = 0x1F80 }; /* cleared bits: any exception raises SIGFPE */
enum { STICKY = 0x3F }; /* flags of exceptions that have happened, not part of the mode */

static const unsigned MODES[] = {DEFAULT_MODE, DEFAULT_MODE | FLUSH | DENORMALS_ARE_ZERO,
                                 DEFAULT_MODE | ROUND_UP, DEFAULT_MODE & ~TRAP};
enum { N_MODES = sizeof MODES / sizeof *MODES };

/* A trace, called from inside a pass. */
static void check_mode(void *calls, const char *name, int layer, const float *data, size_t rows,
                       size_t cols, size_t row_stride)
{
    const unsigned mode = _mm_getcsr() & ~(unsigned)STICKY;
    ++*(int *)calls;
    CHECK(mode == (DEFAULT_MODE | FLUSH | DENORMALS_ARE_ZERO), "%s, layer %d: mode %X", name, layer,
          mode);
    (void)data, (void)rows, (void)cols, (void)row_stride;
}

/* Opens `tiny` and runs an image in a mode, which must be the same afterwards. */
static mamba_status run_in_mode(const struct tiny_model *tiny, unsigned mode, const float *pixels,
                                float *logits, int *calls)
{
    static char arena[1 << 18];
    mamba_model *model;
    mamba_context *context;
    _mm_setcsr(mode);
    mamba_status status = mamba_model_from_bytes(&model, tiny->bytes, tiny->size, NULL);
    const unsigned opened = _mm_getcsr();
    unsigned ran = mode;
    if (status == MAMBA_OK) {
        status = mamba_context_init(&context, model, arena, sizeof arena, NULL);
        mamba_set_trace(context, check_mode, calls);
        status = status == MAMBA_OK ? mamba_forward(context, pixels, logits) : status;
        ran = _mm_getcsr();
    }
    _mm_setcsr(DEFAULT_MODE);
    mamba_model_close(model);
    CHECK((opened & ~(unsigned)STICKY) == mode, "opening leaves mode %X, was %X", opened, mode);
    CHECK((ran & ~(unsigned)STICKY) == mode, "a pass leaves mode %X, was %X", ran, mode);
    return status;
}

/* Neither the checks of a file nor the logits depend on the caller's mode, and it stays as it was.
 */
static void test_modes(void)
{
    struct tiny_model tiny = foldable();
    const uint32_t good_eps = tiny_get_u32(&tiny, 180);
    float pixels[PIXELS], logits[MAX_CLASSES], expected[MAX_CLASSES];
    for (size_t i = 0; i < PIXELS; i++)
        pixels[i] = (float)i / (float)PIXELS;
    for (size_t i = 0; i < N_MODES; i++) {
        int calls = 0;
        tiny_put_u32(&tiny, 180, good_eps);
        tiny_seal(&tiny);
        CHECK(run_in_mode(&tiny, MODES[i], pixels, logits, &calls) == MAMBA_OK, "mode %X",
              MODES[i]);
        CHECK(calls > 0, "no stage was traced");
        if (i == 0)
            memcpy(expected, logits, sizeof logits);
        CHECK(memcmp(logits, expected, tiny.dims.n_classes * sizeof *logits) == 0,
              "mode %X: other bits", MODES[i]);
        const uint32_t eps[] = {0, 0x80000001, 1, 0x7FA00000}; /* two denormals, a signalling NaN */
        for (size_t j = 0; j < 4; j++) {
            tiny_put_u32(&tiny, 180, eps[j]);
            tiny_seal(&tiny);
            const mamba_status status = run_in_mode(&tiny, MODES[i], pixels, logits, &calls);
            CHECK(status == (j == 2 ? MAMBA_OK : MAMBA_ERR_MODEL), "mode %X, norm_eps %zu: %d",
                  MODES[i], j, status);
        }
    }
    tiny_free(&tiny);
}

/* The same of the preparation of a picture in uneven light, which needs all of its steps. */
static void test_modes_of_pictures(void)
{
    enum { WIDTH = 150, HEIGHT = 101, SIDE = 28 };
    static uint8_t pixels[WIDTH * HEIGHT];
    const mamba_picture picture = {pixels, WIDTH, HEIGHT, 1, WIDTH};
    for (size_t i = 0; i < sizeof pixels; i++) {
        const size_t x = i % WIDTH, y = i / WIDTH;
        const bool stroke = x > 60 && x < 70 && y > 20 && y < 80;
        pixels[i] = (uint8_t)((stroke ? 20 : 100) + x / 2 + i * i % 23);
    }
    for (uint32_t preparation = 0; preparation < 2; preparation++) {
        uint8_t out[SIDE * SIDE], expected[SIDE * SIDE];
        for (size_t i = 0; i < N_MODES; i++) {
            _mm_setcsr(MODES[i]);
            const mamba_status status =
                mamba_prepare_picture(&picture, preparation, SIDE, SIDE, 1, out, NULL);
            const unsigned left = _mm_getcsr() & ~(unsigned)STICKY;
            _mm_setcsr(DEFAULT_MODE);
            if (i == 0)
                memcpy(expected, out, sizeof out);
            CHECK(status == MAMBA_OK && left == MODES[i] && !memcmp(out, expected, sizeof out),
                  "preparation %u, mode %X: status %d, left mode %X, or other pixels", preparation,
                  MODES[i], status, left);
        }
    }
}

/* valgrind has no modes. */
static bool has_modes(void)
{
    const unsigned mode = DEFAULT_MODE | FLUSH | DENORMALS_ARE_ZERO | ROUND_UP;
    _mm_setcsr(mode);
    const bool kept = (_mm_getcsr() & ~(unsigned)STICKY) == mode;
    _mm_setcsr(DEFAULT_MODE);
    if (!kept)
        printf("floating-point modes: not tested here\n");
    return kept;
}
#endif

int main(void)
{
    test_overflow();
    test_single_overflows();
    test_ensemble();
    test_safe_folds();
    test_extreme_folds();
    test_denormal_eps();
#if defined(__SSE__)
    if (has_modes()) {
        test_modes();
        test_modes_of_pictures();
    }
#endif
    return check_summary();
}
