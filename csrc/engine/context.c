#include "context.h"

#include "error.h"

enum { ALIGNMENT = 64 };

/* A walk over the arrays. Without a base it measures the arena, with one it places the arrays, so
 * that size and layout cannot disagree. Every array is a product of dims that header.c has checked,
 * below 2^48 floats: 64 bits cannot overflow. */
struct reserve {
    float *base; /* of the first array, or NULL to measure only */
    uint64_t floats;
};

static float *take(struct reserve *reserve, uint64_t rows, uint64_t row_floats)
{
    float *array = reserve->base ? reserve->base + reserve->floats : NULL;
    reserve->floats += mamba_pad(rows * row_floats);
    return array;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void reserve_stem(struct reserve *reserve, struct mamba_context *context,
                         const struct mamba_info *info)
{
    struct stem_conv convs[MAX_STEM_CONVS];
    const size_t n = mamba_stem_convs(info, convs);
    uint64_t im2col = 0, conv_output = 0;
    uint32_t height = info->height, width = info->width;
    if (info->stem == STEM_PATCH)
        im2col = info->length * mamba_im2col_stride(mamba_patch_values(info));
    for (size_t i = 0; i < n; i++) {
        const uint64_t in = convs[i].in;
        context->feature_maps[i] = take(reserve, 1, mamba_feature_map_floats(height, width, in));
        height = mamba_conv_side(height, convs[i].stride);
        width = mamba_conv_side(width, convs[i].stride);
        const uint64_t outputs = (2 * mamba_conv_rows(width) - 1) * width;
        im2col = larger(im2col, outputs * mamba_im2col_stride(9 * in));
        conv_output = larger(conv_output, outputs * mamba_pad(convs[i].out));
    }
    context->conv_output = take(reserve, 1, conv_output);
    context->im2col = take(reserve, 1, im2col);
}

/* Only the image must have the same place for all members. */
static void reserve_arrays(struct reserve *reserve, struct mamba_context *context,
                           const struct mamba_info *info)
{
    const uint64_t length = info->length, d_model = mamba_pad(info->d_model);
    const uint64_t d_inner = mamba_pad(info->d_inner);
    const uint64_t x_width = mamba_pad(info->dt_rank + 2 * (uint64_t)info->d_state);
    context->image = take(reserve, 1, mamba_image_values(info));
    reserve_stem(reserve, context, info);
    context->x = take(reserve, length, d_model);
    context->hidden = take(reserve, length, d_model);
    context->scale = take(reserve, 1, length);
    context->xs = take(reserve, length, d_inner);
    context->z = take(reserve, length, d_inner);
    context->u = take(reserve, length, d_inner);
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

/* The arena holds the struct, padded to whole cache lines, and then the arrays. */
enum { STRUCT_BYTES = (sizeof(struct mamba_context) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT };

size_t mamba_context_bytes(const mamba_model *model)
{
    struct mamba_context unused;
    uint64_t floats = 0;
    for (uint32_t i = 0; i < model->info.members; i++) {
        struct reserve measure = {0};
        reserve_arrays(&measure, &unused, &model->members[i].info);
        floats = larger(floats, measure.floats);
    }
    uint64_t bytes = (ALIGNMENT - 1) + STRUCT_BYTES + floats * sizeof(float);
    return bytes <= SIZE_MAX / 2 ? (size_t)bytes : 0; /* a ptrdiff_t must hold it */
}

void mamba_use_member(struct mamba_context *context, const struct member_weights *member)
{
    struct reserve place = {.base = context->arrays};
    context->member = member;
    if (!member->same_shape)
        reserve_arrays(&place, context, &member->info);
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
    context->arrays = (float *)(void *)(aligned + STRUCT_BYTES);
    mamba_use_member(context, &model->members[0]);
    *out = context;
    return MAMBA_OK;
}

void mamba_set_trace(mamba_context *context, mamba_trace trace, void *user)
{
    context->trace = trace;
    context->trace_user = user;
}
