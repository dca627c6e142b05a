/* Compares the forward pass with a second one, in double precision (reference.h). Also checks the
 * promises of mamba.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "reference.h"
#include "tiny_model.h"

enum { MAX_CLASSES = 256, MAX_PIXELS = 1024 };

static void *must(void *memory)
{
    if (!memory)
        abort();
    return memory;
}

static void fill_pixels(uint8_t *pixels, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++)
        pixels[i] = (uint8_t)(fabsf(tiny_random(&seed)) * 255.0f);
}

static void forward_once(const mamba_model *model, const float *pixels, float *logits)
{
    const size_t bytes = mamba_context_bytes(model);
    void *arena = must(malloc(bytes));
    memset(arena, 0xFF, bytes); /* NaN: a read before the first write shows */
    mamba_context *context;
    CHECK(mamba_context_init(&context, model, arena, bytes, NULL) == MAMBA_OK, "init");
    CHECK(mamba_forward(context, pixels, logits) == MAMBA_OK, "forward");
    free(arena);
}

/* Compares a model with its reference, and ends it. */
static void compare_model(struct tiny_model tiny, uint32_t seed)
{
    const mamba_info dims = tiny.dims;
    mamba_model *model;
    mamba_error error;
    if (!CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message))
        return;
    float pixels[MAX_PIXELS], logits[MAX_CLASSES];
    uint32_t state = seed;
    for (size_t i = 0; i < (size_t)dims.height * dims.width * dims.channels; i++)
        pixels[i] = fabsf(tiny_random(&state));
    forward_once(model, pixels, logits);
    const double *expected = reference(&tiny, pixels, NULL);
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < dims.n_classes; i++) {
        difference += pow((double)logits[i] - expected[i], 2.0);
        size += pow(expected[i], 2.0);
    }
    CHECK(sqrt(difference / size) <= 1e-5, "architecture %u: relative difference %g", seed,
          sqrt(difference / size));
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void compare_with_reference(mamba_info dims, uint32_t seed)
{
    compare_model(tiny_build(dims, seed), seed);
}

/* Images of several channels, and members of different shapes in any order. A sample still has each
 * number of channels, both types of weights, and 20 of the 96 architectures first. */
static void test_channels_and_shapes(void)
{
    const uint32_t step = only_a_sample() ? 5 : 1;
    for (uint32_t i = 0; i < 96; i += step) {
        mamba_info shapes[TINY_SHAPES];
        for (uint32_t j = 0; j < TINY_SHAPES; j++) {
            shapes[j] = varied((i + 37 * j) % 96);
            shapes[j].n_classes = 5;
            shapes[j].members = 1;
            shapes[j].channels = 1 + i % 4;
            shapes[j].weight_type = i / 4 % 2;
        }
        compare_with_reference(shapes[0], 2000 + i);
        compare_model(tiny_build_mixed(shapes, 2 + i % 2, 2100 + i), 2100 + i);
    }
}

static void test_against_reference(void)
{
    const uint32_t rounds = only_a_sample() ? 1 : 3;
    for (uint32_t i = 0; i < 96; i++) {
        for (uint32_t round = 0; round < rounds; round++)
            compare_with_reference(varied(i), i + 96 * round);
        mamba_info int8 = varied(i);
        int8.weight_type = 1;
        compare_with_reference(int8, 3000 + i);
    }
    mamba_info wide = varied(0); /* limits that the small models do not reach */
    wide.d_conv = 16;
    wide.d_state = 256;
    wide.n_classes = 256;
    wide.dt_rank = 20;
    compare_with_reference(wide, 1000);
    mamba_info large = varied(2); /* too large to be folded */
    large.n_layers = 1;
    large.local_conv = 0;
    large.patch_height = large.patch_width = 1;
    large.d_model = 24;
    large.d_inner = 2064;
    compare_with_reference(large, 1001);
    /* Conv stems compute some rows at a time: any number may be left for the last product. */
    static const uint32_t widths[] = {9, 23, 95};
    for (uint32_t i = 0; i < 60; i++) {
        mamba_info rows = varied(32 + i % 2 * 32 + i % 32);
        rows.height = 1 + i / 6;
        rows.width = widths[i % 3];
        rows.stem_width = 12;
        rows.d_model = 17;
        compare_with_reference(rows, 1002 + i);
    }
}

/* Rows of int8 weights with negative scales, and with the byte of -128 steps. */
static void test_signs_of_int8(void)
{
    mamba_info dims = tiny_dims();
    dims.weight_type = 1;
    struct tiny_model tiny = tiny_build(dims, 13);
    for (size_t row = 0; row < dims.d_model; row++) {
        uint8_t *scale = tiny.bytes + tiny.tensors + row * (4 + 6);
        scale[3] ^= (uint8_t)(row % 2 << 7);
        scale[4 + row] = 0x80;
    }
    tiny_seal(&tiny);
    compare_model(tiny, 13);
}

/* A batch of any size on any number of threads gives the bits of single calls. */
static void test_batches(unsigned number)
{
    enum { N = 11 };
    mamba_info dims = varied(number), shapes[] = {dims, varied((number + 40) % 96), dims};
    dims.channels = 1 + number % 4;
    shapes[1].n_classes = dims.n_classes;
    struct tiny_model tiny = number % 2 ? tiny_build_mixed(shapes, 3, 7) : tiny_build(dims, 7);
    const size_t classes = dims.n_classes;
    const size_t pixels = (size_t)dims.height * dims.width * tiny.dims.channels;
    mamba_model *model;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    uint8_t bytes[N * MAX_PIXELS];
    float floats[N * MAX_PIXELS], single[N * MAX_CLASSES], batch[N * MAX_CLASSES];
    fill_pixels(bytes, N * pixels, 3);
    for (size_t i = 0; i < N * pixels; i++)
        floats[i] = (float)bytes[i] / 255.0f;
    for (size_t i = 0; i < N; i++)
        forward_once(model, floats + i * pixels, single + i * classes);
    for (int threads = 1; threads <= 5; threads++) {
        const size_t arena_bytes = mamba_batch_bytes(model, threads);
        void *arena = must(malloc(arena_bytes));
        for (size_t n = 0; n <= N; n++) {
            const size_t result = n * classes * sizeof(float);
            memset(batch, 0xFF, sizeof batch);
            CHECK(mamba_forward_batch_u8(model, arena, arena_bytes, threads, bytes, n, batch, NULL,
                                         NULL) == MAMBA_OK &&
                      memcmp(batch, single, result) == 0,
                  "u8, %zu images on %d threads", n, threads);
            memset(batch, 0xFF, sizeof batch);
            CHECK(mamba_forward_batch(model, arena, arena_bytes, threads, floats, n, batch, NULL,
                                      NULL) == MAMBA_OK &&
                      memcmp(batch, single, result) == 0,
                  "float, %zu images on %d threads", n, threads);
        }
        free(arena);
    }
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* An arena may begin anywhere, and the promised bytes are enough (the sanitizers watch). */
static void test_arena(void)
{
    mamba_info dims = varied(21);
    struct tiny_model tiny = tiny_build(dims, 9);
    mamba_model *model;
    mamba_error error;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    const size_t bytes = mamba_context_bytes(model);
    float pixels[MAX_PIXELS] = {0.5f}, expected[MAX_CLASSES], logits[MAX_CLASSES];
    forward_once(model, pixels, expected);
    for (size_t offset = 0; offset < 64; offset++) {
        char *memory = must(malloc(offset + bytes));
        mamba_context *context;
        CHECK(mamba_context_init(&context, model, memory + offset, bytes, NULL) == MAMBA_OK,
              "offset %zu", offset);
        mamba_forward(context, pixels, logits);
        CHECK(memcmp(logits, expected, dims.n_classes * sizeof *logits) == 0, "offset %zu", offset);
        CHECK(mamba_context_init(&context, model, memory + offset, bytes - 1, &error) ==
                      MAMBA_ERR_ARGUMENT &&
                  !context && strstr(error.message, "arena_bytes"),
              "too small: %s", error.message);
        free(memory);
    }
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void test_arguments(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 10);
    mamba_model *model;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    const size_t bytes = mamba_batch_bytes(model, 1);
    char *arena = must(malloc(bytes));
    float pixels[24] = {0}, logits[3];
    mamba_context *context;
    mamba_error error;
    CHECK(mamba_context_init(NULL, model, arena, bytes, NULL) == MAMBA_ERR_ARGUMENT, "out");
    CHECK(mamba_context_init(&context, NULL, arena, bytes, NULL) == MAMBA_ERR_ARGUMENT, "model");
    CHECK(mamba_context_init(&context, model, NULL, bytes, NULL) == MAMBA_ERR_ARGUMENT, "arena");
    CHECK(mamba_context_init(&context, model, arena, bytes, NULL) == MAMBA_OK, "good");
    CHECK(mamba_forward(NULL, pixels, logits) == MAMBA_ERR_ARGUMENT, "context");
    CHECK(mamba_forward(context, NULL, logits) == MAMBA_ERR_ARGUMENT, "pixels");
    CHECK(mamba_forward_u8(context, NULL, logits) == MAMBA_ERR_ARGUMENT, "pixels");
    CHECK(mamba_forward(context, pixels, NULL) == MAMBA_ERR_ARGUMENT, "logits");
    CHECK(mamba_batch_bytes(model, 0) == 0 && mamba_batch_bytes(model, -1) == 0 &&
              mamba_batch_bytes(model, 1025) == 0,
          "threads");
    CHECK(mamba_forward_batch(model, arena, bytes, 0, pixels, 1, logits, NULL, &error) ==
                  MAMBA_ERR_ARGUMENT &&
              strstr(error.message, "threads"),
          "%s", error.message);
    CHECK(mamba_forward_batch(model, arena, bytes - 1, 1, pixels, 1, logits, NULL, &error) ==
                  MAMBA_ERR_ARGUMENT &&
              strstr(error.message, "arena_bytes"),
          "%s", error.message);
    CHECK(mamba_forward_batch(model, arena, bytes, 1, NULL, 1, logits, NULL, &error) ==
              MAMBA_ERR_ARGUMENT,
          "images");
    CHECK(mamba_forward_batch(model, arena, bytes, 1, pixels, 1, NULL, NULL, &error) ==
              MAMBA_ERR_ARGUMENT,
          "logits");
    CHECK(mamba_forward_batch(model, arena, bytes, 1, NULL, 0, NULL, NULL, &error) == MAMBA_OK &&
              mamba_forward_batch_u8(model, arena, bytes, 1, NULL, 0, NULL, NULL, &error) ==
                  MAMBA_OK,
          "no images");
    CHECK(mamba_max_threads() >= 1 && mamba_version()[0], "threads, version");
    free(arena);
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* Pixels of a valid model can still drive every activation function to its limits. */
static void test_extremes(void)
{
    mamba_info dims = varied(16);
    dims.pixel_std = 1e-6f;
    struct tiny_model tiny = tiny_build(dims, 12);
    mamba_model *model;
    float pixels[MAX_PIXELS], logits[MAX_CLASSES];
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    for (size_t i = 0; i < MAX_PIXELS; i++)
        pixels[i] = (float)(i % 2);
    forward_once(model, pixels, logits);
    for (size_t i = 0; i < dims.n_classes; i++)
        CHECK(isfinite(logits[i]), "logit %zu is %g", i, (double)logits[i]);
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void test_softmax(void)
{
    float x[] = {1000.0f, 999.0f, -1000.0f}, p[3];
    mamba_softmax(x, p, 3);
    CHECK(fabsf(p[0] - 0.731058579f) < 1e-6f && fabsf(p[1] - 0.268941421f) < 1e-6f && p[2] == 0.0f,
          "got %g %g %g", (double)p[0], (double)p[1], (double)p[2]);
    mamba_softmax(x, x, 3);
    CHECK(memcmp(x, p, sizeof x) == 0, "in place");
    mamba_softmax(x, x, 0);
}

int main(void)
{
    test_against_reference();
    test_channels_and_shapes();
    test_signs_of_int8();
    for (unsigned number = 0; number < 96; number += 11) /* each stem, direction and form of A */
        test_batches(number);
    test_arena();
    test_arguments();
    test_extremes();
    test_softmax();
    return check_summary();
}
