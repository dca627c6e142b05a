#include "context.h"

#include "copy.h"
#include "error.h"

enum { ALIGNMENT = 64 };

/* The same walk measures (no base) and places, as in model.c. All sizes are products of the
 * header's range-checked dims: below 2^48 floats each, so that 64 bits cannot overflow. */
struct reserve {
    float *base;
    uint64_t floats;
};

static float *take(struct reserve *reserve, uint64_t rows, uint64_t padded)
{
    float *array = reserve->base ? reserve->base + reserve->floats : NULL;
    reserve->floats += mamba_pad(rows * padded);
    return array;
}

/* What a copy reads and writes behind its row. */
enum { BEHIND = COPY_STEP - 1 };

size_t mamba_picture_floats(uint64_t height, uint64_t width, uint64_t channels)
{
    return (size_t)mamba_pad((height + 2) * (width + 2) * channels + BEHIND);
}

size_t mamba_window_stride(uint64_t inputs)
{
    return (size_t)mamba_pad(inputs + BEHIND);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* What a stem needs: its window, and the pictures between its convolutions. */
static void reserve_stem(struct reserve *reserve, struct mamba_context *context,
                         const struct mamba_info *info)
{
    struct stem_conv convs[MAX_STEM_CONVS];
    const size_t n = mamba_stem_convs(info, convs);
    uint64_t window = 0, pixels = 0;
    uint32_t height = info->height, width = info->width;
    if (n == 0)
        window = info->length * mamba_window_stride(info->patch_height * info->patch_width);
    for (size_t i = 0; i < n; i++) {
        context->stem_maps[i] = take(reserve, 1, mamba_picture_floats(height, width, convs[i].in));
        height = mamba_strided(height, convs[i].stride);
        width = mamba_strided(width, convs[i].stride);
        const uint64_t outputs = (2 * mamba_stem_rows(width) - 1) * width;
        window = larger(window, outputs * mamba_window_stride(9 * (uint64_t)convs[i].in));
        pixels = larger(pixels, outputs * mamba_pad(convs[i].out));
    }
    context->pixels = take(reserve, 1, pixels);
    context->window = take(reserve, 1, window);
}

static void reserve_arrays(struct reserve *reserve, struct mamba_context *context,
                           const struct mamba_info *info)
{
    const uint64_t length = info->length, d_model = mamba_pad(info->d_model),
                   d_inner = mamba_pad(info->d_inner),
                   x_width = mamba_pad(info->dt_rank + 2 * (uint64_t)info->d_state);
    context->image = take(reserve, info->height, info->width);
    reserve_stem(reserve, context, info);
    context->x = take(reserve, length, d_model);
    context->u = take(reserve, length, d_model);
    context->scale = take(reserve, 1, length);
    context->xs = take(reserve, length, d_inner);
    context->z = take(reserve, length, d_inner);
    context->c = take(reserve, length, d_inner);
    context->x_dbc = take(reserve, length, x_width);
    context->delta = take(reserve, length, d_inner);
    context->y = take(reserve, length, d_inner);
    context->y_b = mamba_scans_per_layer(info) > 1 ? take(reserve, length, d_inner) : NULL;
    context->state = take(reserve, info->d_state, PAD);
    context->pooled = take(reserve, 1, d_model);
    context->logits = take(reserve, 1, mamba_pad(info->n_classes));
    context->d_model = (size_t)d_model;
    context->d_inner = (size_t)d_inner;
    context->x_width = (size_t)x_width;
}

/* The context itself comes first in the arena, then its arrays on a cache line of their own. */
static size_t header_bytes(void)
{
    return (sizeof(struct mamba_context) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t mamba_context_bytes(const mamba_model *model)
{
    struct mamba_context unused;
    struct reserve measure = {0};
    reserve_arrays(&measure, &unused, &model->info);
    uint64_t bytes = (ALIGNMENT - 1) + header_bytes() + measure.floats * sizeof(float);
    return bytes <= SIZE_MAX / 2 ? (size_t)bytes : 0; /* pointers must be subtractable */
}

mamba_status mamba_context_init(mamba_context **out, const mamba_model *model, void *arena,
                                size_t arena_bytes, mamba_error *error)
{
    if (out)
        *out = NULL;
    if (!out || !model || !arena)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "mamba_context_init: %s is NULL",
                          !out ? "out" : (!model ? "model" : "arena"));
    size_t needed = mamba_context_bytes(model);
    if (arena_bytes < needed)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "arena_bytes: got %zu, expected at least the %zu of "
                          "mamba_context_bytes",
                          arena_bytes, needed);
    size_t skip = (size_t)(-(uintptr_t)arena % ALIGNMENT);
    char *aligned = (char *)arena + skip;
    struct mamba_context *context = (struct mamba_context *)(void *)aligned;
    *context = (struct mamba_context){.model = model};
    struct reserve place = {.base = (float *)(void *)(aligned + header_bytes())};
    reserve_arrays(&place, context, &model->info);
    *out = context;
    return MAMBA_OK;
}

void mamba_set_trace(mamba_context *context, mamba_trace trace, void *user)
{
    context->trace = trace;
    context->trace_user = user;
}
