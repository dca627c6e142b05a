/* Ensembles ask their members one after the other, until the mean is clear (docs/format.md). What
 * each member says comes from the trace of a pass that asks all. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "denormals.h"
#include "reference.h"
#include "tiny_model.h"

enum { IMAGES = 24, PIXELS = 7 * 9, CLASSES = 5, MEMBERS = 3 };

struct said {
    float logits[MEMBERS][CLASSES];
    uint32_t members;
};

static void listen(void *user, const char *name, int layer, const float *data, size_t rows,
                   size_t cols, size_t row_stride)
{
    struct said *said = user;
    (void)layer, (void)rows, (void)row_stride;
    if (strcmp(name, "logits") == 0 && said->members < MEMBERS)
        memcpy(said->logits[said->members++], data, cols * sizeof *data);
}

static int descending(const void *a, const void *b)
{
    const float left = *(const float *)a, right = *(const float *)b;
    return (left < right) - (left > right);
}

/* Sets the mean logits of the first members, and returns its margin. */
static float mean_of(float mean[CLASSES], const struct said *said, uint32_t members)
{
    float sorted[CLASSES];
    for (size_t class = 0; class < CLASSES; class++) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < members; i++)
            sum += said->logits[i][class];
        mean[class] = sum / (float)members;
    }
    memcpy(sorted, mean, sizeof sorted);
    qsort(sorted, CLASSES, sizeof *sorted, descending);
    return sorted[0] - sorted[1];
}

/* Sets the logits and returns the number of members that the rule gives. */
static uint32_t expected(float mean[CLASSES], const struct said *said, float exit_margin)
{
    for (uint32_t members = 1; members < MEMBERS; members++)
        if (mean_of(mean, said, members) > exit_margin && exit_margin > 0.0f)
            return members;
    mean_of(mean, said, MEMBERS);
    return MEMBERS;
}

/* One open ensemble, and what its members say about each image. */
struct ensemble {
    mamba_model *model;
    mamba_context *context;
    void *arena;
    size_t arena_bytes; /* of a batch on two threads, too */
    uint8_t images[IMAGES][PIXELS];
    struct said said[IMAGES];
};

static void ask_all(struct ensemble *all)
{
    uint32_t seed = 5;
    CHECK(mamba_set_exit_margin(all->model, 0.0f, NULL) == MAMBA_OK, "0 is refused");
    for (size_t i = 0; i < IMAGES; i++) {
        float logits[CLASSES], mean[CLASSES];
        for (size_t pixel = 0; pixel < PIXELS; pixel++)
            all->images[i][pixel] = (uint8_t)(fabsf(tiny_random(&seed)) * 255.0f);
        mamba_set_trace(all->context, listen, &all->said[i]);
        CHECK(mamba_forward_u8(all->context, all->images[i], logits) == MAMBA_OK, "forward");
        CHECK(mamba_members_asked(all->context) == MEMBERS && all->said[i].members == MEMBERS,
              "without a margin, %u members were asked", all->said[i].members);
        mean_of(mean, &all->said[i], MEMBERS);
        CHECK(memcmp(logits, mean, sizeof mean) == 0, "not the mean of all members");
    }
    mamba_set_trace(all->context, NULL, NULL);
}

/* Compares single images and batches with the rule. Returns the members asked for all images. */
static uint32_t check_margin(struct ensemble *all, float exit_margin)
{
    float logits[IMAGES][CLASSES], single[CLASSES], mean[CLASSES];
    uint8_t asked[IMAGES];
    uint32_t sum = 0;
    CHECK(mamba_set_exit_margin(all->model, exit_margin, NULL) == MAMBA_OK, "margin is refused");
    CHECK(mamba_model_info(all->model)->exit_margin == exit_margin &&
              mamba_member_info(all->model, 2)->exit_margin == exit_margin,
          "the margin does not show");
    CHECK(mamba_forward_batch_u8(all->model, all->arena, all->arena_bytes, 2, *all->images, IMAGES,
                                 *logits, asked, NULL) == MAMBA_OK,
          "batch");
    for (size_t i = 0; i < IMAGES; i++) {
        const uint32_t members = expected(mean, &all->said[i], exit_margin);
        sum += members;
        CHECK(memcmp(logits[i], mean, sizeof mean) == 0 && asked[i] == members,
              "margin %g, image %zu of a batch: %u members were asked, not %u", (double)exit_margin,
              i, asked[i], members);
        mamba_forward_u8(all->context, all->images[i], single);
        CHECK(memcmp(single, mean, sizeof mean) == 0 &&
                  mamba_members_asked(all->context) == members,
              "margin %g, image %zu: %u members were asked, not %u", (double)exit_margin, i,
              mamba_members_asked(all->context), members);
    }
    return sum;
}

static void test_rule(mamba_info dims, size_t n_shapes)
{
    mamba_info shapes[MEMBERS] = {dims, varied(45), varied(77)};
    for (size_t i = 0; i < MEMBERS; i++)
        shapes[i].n_classes = CLASSES;
    dims = shapes[0];
    dims.members = MEMBERS;
    struct tiny_model tiny =
        n_shapes > 1 ? tiny_build_mixed(shapes, n_shapes, 3) : tiny_build(dims, 3);
    struct ensemble all = {.model = NULL};
    mamba_error error;
    if (!CHECK(tiny_open(&all.model, &tiny, &error) == MAMBA_OK, "%s", error.message))
        return;
    all.arena_bytes = mamba_batch_bytes(all.model, 2);
    all.arena = malloc(all.arena_bytes);
    void *own = malloc(mamba_context_bytes(all.model));
    if (!all.arena || !own)
        abort();
    mamba_context_init(&all.context, all.model, own, mamba_context_bytes(all.model), NULL);
    CHECK(mamba_members_asked(all.context) == 0, "no image yet");
    ask_all(&all);
    bool some = false; /* of the images left after one member, or after two */
    for (float margin = 0.0625f; margin < 16.0f; margin *= 1.5f) {
        const uint32_t sum = check_margin(&all, margin);
        some = some || (sum > IMAGES && sum < MEMBERS * IMAGES);
    }
    CHECK(some, "each margin asked one member, or all");
    CHECK(check_margin(&all, 0.0f) == MEMBERS * IMAGES, "0 asks all");
    CHECK(check_margin(&all, FLT_MIN) == IMAGES, "any margin is clear enough");
    CHECK(check_margin(&all, 1e6f) == MEMBERS * IMAGES, "no margin is clear enough");
    float mean[CLASSES]; /* the two best classes differ by the margin: that is not more */
    check_margin(&all, mean_of(mean, &all.said[0], 1));
    free(own);
    free(all.arena);
    mamba_model_close(all.model);
    tiny_free(&tiny);
}

/* The margin of the file counts, and the overflow of a member that is not asked does not. */
static void test_file(void)
{
    mamba_info dims = tiny_dims();
    dims.members = 2;
    dims.exit_margin = 1e-6f;
    struct tiny_model tiny = tiny_build(dims, 4);
    const size_t head = tiny.size - sizeof(float) * (16 * dims.d_model + 16);
    for (size_t i = 0; i <= dims.d_model; i++) { /* weights and bias of the second member */
        tiny_put_f32(&tiny, head + sizeof(float) * 16 * i, 3e38f);
        tiny_put_f32(&tiny, head + sizeof(float) * (16 * i + 1), i < dims.d_model ? -3e38f : 3e38f);
    }
    tiny_seal(&tiny);
    mamba_model *model;
    mamba_error error;
    const float pixels[4 * 6] = {1.0f};
    float logits[16];
    uint8_t asked = 0;
    if (!CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message))
        return;
    const size_t bytes = mamba_batch_bytes(model, 1);
    void *arena = malloc(bytes);
    CHECK(mamba_forward_batch(model, arena, bytes, 1, pixels, 1, logits, &asked, &error) ==
              MAMBA_OK,
          "%s", error.message);
    CHECK(asked == 1, "%u members were asked", asked);
    mamba_set_exit_margin(model, 0.0f, NULL);
    CHECK(mamba_forward_batch(model, arena, bytes, 1, pixels, 1, logits, &asked, &error) ==
              MAMBA_ERR_MODEL,
          "the second member does not overflow");
    CHECK(asked == 2, "%u members were asked", asked);
    free(arena);
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void test_arguments(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 4);
    const float bad[] = {-1e-30f, -1.0f,    1000001.0f, INFINITY, -INFINITY,
                         NAN,     -FLT_MIN, -1e-40f,    1e-40f,   FLT_TRUE_MIN};
    mamba_model *model;
    mamba_error error;
    CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message);
    for (size_t i = 0; i < 2 * sizeof bad / sizeof *bad; i++) {
        const float margin = bad[i / 2];
        const uint64_t saved = i % 2 ? denormals_off() : 0; /* the caller's mode does not matter */
        const mamba_status status = mamba_set_exit_margin(model, margin, &error);
        if (i % 2)
            denormals_restore(saved);
        CHECK(status == MAMBA_ERR_ARGUMENT && strstr(error.message, "exit_margin: got") &&
                  mamba_model_info(model)->exit_margin == 0.0f,
              "%g: %s", (double)margin, error.message);
    }
    CHECK(mamba_set_exit_margin(NULL, 1.0f, &error) == MAMBA_ERR_ARGUMENT &&
              strstr(error.message, "model is NULL"),
          "%s", error.message);
    mamba_model_close(model);
    tiny_free(&tiny);
}

int main(void)
{
    test_rule(varied(20), 1);
    test_rule(varied(20), MEMBERS);
    test_file();
    test_arguments();
    return check_summary();
}
