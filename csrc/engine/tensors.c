#include "tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "crc32.h"
#include "error.h"
#include "header.h"

_Static_assert(sizeof(float) == 4, "model files hold IEEE 754 binary32");

/* ---- the walk ---------------------------------------------------------------------------- */

enum shape { VECTOR, TABLE, PANELS }; /* V(n), T(rows, n), P(rows, n) */

/* A walk over the tensors in file order. Without a base it measures the file, with one it sets the
 * pointers, so that size and layout cannot disagree. header.c limits the dims, and asserts
 * that 64 bits cannot overflow. */
struct walk {
    const float *base;   /* the first tensor, or NULL to measure only */
    float *expanded;     /* int8: the same memory, zeros where the walk has not been */
    const uint8_t *file; /* int8: the first tensor in the file */
    bool int8;           /* the file's weight_type */
    uint64_t floats;     /* passed so far, with padding */
    uint64_t parameters; /* passed so far, without padding */
    uint64_t bytes;      /* passed so far, in the file */
    /* The place of the walk, for messages. */
    bool in_ensemble;
    int member, layer, scan; /* layer is -1 outside the layers */
    char bad_tensor[64];     /* the first tensor with a bad float, or "" */
    uint64_t bad_index;      /* its first bad float, in file order */
    float bad;               /* the value of this float */
};

static void set_bad(struct walk *walk, const char *name, uint64_t index, float value)
{
    char member[24] = "", layer[24] = "";
    if (walk->bad_tensor[0])
        return;
    if (walk->in_ensemble)
        snprintf(member, sizeof member, "members.%d.", walk->member);
    if (walk->layer >= 0)
        snprintf(layer, sizeof layer, "layers.%d.", walk->layer);
    /* Tensors of the second scan are called conv1d_b.weight, x_proj_b, ... */
    const int head = (int)strcspn(name, ".");
    snprintf(walk->bad_tensor, sizeof walk->bad_tensor, "%s%s%.*s%s%s", member, layer, head, name,
             walk->scan ? "_b" : "", name + head);
    walk->bad_index = index;
    walk->bad = value;
}

/* Bytes of a row in a file with int8 weights: n floats of a vector, or a scale and n int8. */
static uint64_t row_bytes(enum shape shape, uint64_t n)
{
    return shape == VECTOR ? n * sizeof(float) : sizeof(float) + n;
}

/* Sets the floats of the next tensor from its rows in a file with int8 weights. */
static void expand(const struct walk *walk, enum shape shape, uint32_t rows, uint32_t n)
{
    const uint8_t *from = walk->file + walk->bytes;
    for (uint64_t row = 0; row < rows; row++, from += row_bytes(shape, n)) {
        float *to = walk->expanded + walk->floats, scale;
        if (shape == VECTOR) {
            memcpy(to, from, n * sizeof *to);
            continue;
        }
        to += shape == PANELS ? row / PAD * PAD * n + row % PAD : row * mamba_pad(n);
        memcpy(&scale, from, sizeof scale);
        const int8_t *values = (const int8_t *)(from + sizeof scale);
        for (size_t i = 0; i < n; i++)
            to[shape == PANELS ? PAD * i : i] = scale * (float)values[i];
    }
}

/* Passes a tensor, and looks for the first bad float of all tensors: one that is not finite, or is
 * padding and not 0. */
static const float *pass(struct walk *walk, const char *name, enum shape shape, uint32_t rows,
                         uint32_t n)
{
    /* T(rows, n) is `rows` times P(n, 1). */
    const uint64_t times = shape == PANELS ? 1 : rows, in = shape == PANELS ? n : 1;
    const uint32_t out = shape == PANELS ? rows : n;
    const uint64_t floats = mamba_pad(out) * in, last_panel = floats - PAD * in;
    const float *tensor = walk->base ? walk->base + walk->floats : NULL;
    if (walk->expanded)
        expand(walk, shape, rows, n);
    for (uint64_t first = 0; tensor && first < times * floats; first += floats) {
        for (uint64_t i = 0; i < floats; i++) {
            uint32_t bits;
            memcpy(&bits, tensor + first + i, sizeof bits);
            const bool is_padding = i >= last_panel && i % PAD > (out - 1) % PAD;
            if (bits << 1 >= (is_padding ? 1 : 0xFF000000u)) /* without its sign */
                set_bad(walk, name, first + i, tensor[first + i]);
        }
    }
    walk->floats += times * floats;
    walk->parameters += rows * (uint64_t)n;
    walk->bytes += walk->int8 ? rows * row_bytes(shape, n) : times * floats * sizeof(float);
    return tensor;
}

static const float *vector(struct walk *walk, const char *name, uint32_t n)
{
    return pass(walk, name, VECTOR, 1, n);
}

/* A matrix P(out, in) and, unless `bias` is NULL, its V(out). */
static struct linear linear(struct walk *walk, const char *weight, const char *bias, uint32_t out,
                            uint32_t in)
{
    struct linear result = {.in = in, .out = out};
    result.weight = pass(walk, weight, PANELS, out, in);
    result.bias = bias ? vector(walk, bias, out) : NULL;
    return result;
}

/* ---- the tensors ------------------------------------------------------------------------- */

static void walk_stem(struct walk *walk, const struct mamba_info *info,
                      struct member_weights *member)
{
    const uint32_t d_model = info->d_model;
    if (info->stem == STEM_PATCH) {
        const uint32_t in = (uint32_t)mamba_patch_values(info);
        member->patch_stem = linear(walk, "stem.weight", "stem.bias", d_model, in);
    }
    struct stem_conv convs[MAX_STEM_CONVS];
    const size_t n = mamba_stem_convs(info, convs);
    for (size_t i = 0; i < n; i++) {
        /* Arrays, not pointers: those need relocations, which make ./mamba larger. */
        static const char weights[][18] = {"stem.conv1.weight", "stem.conv2.weight",
                                           "stem.conv3.weight"};
        static const char biases[][16] = {"stem.conv1.bias", "stem.conv2.bias", "stem.conv3.bias"};
        member->stem_convs[i] = linear(walk, weights[i], biases[i], convs[i].out, 9 * convs[i].in);
    }
    member->pos_embed =
        info->pos_embed ? pass(walk, "pos_embed", TABLE, info->length, d_model) : NULL;
}

static void walk_scan(struct walk *walk, const struct mamba_info *info, struct scan_weights *scan)
{
    const uint32_t d_inner = info->d_inner, d_state = info->d_state;
    scan->conv_weight = pass(walk, "conv1d.weight", TABLE, info->d_conv, d_inner);
    scan->conv_bias = vector(walk, "conv1d.bias", d_inner);
    scan->x_proj = linear(walk, "x_proj", NULL, info->dt_rank + 2 * d_state, d_inner);
    scan->dt_proj = linear(walk, "dt_proj.weight", "dt_proj.bias", d_inner, info->dt_rank);
    scan->a = info->tied_a ? vector(walk, "A", d_inner) : pass(walk, "A", TABLE, d_state, d_inner);
    scan->d = vector(walk, "D", d_inner);
}

static void walk_member(struct walk *walk, struct member_weights *member)
{
    struct mamba_info *info = &member->info;
    const uint64_t before = walk->parameters;
    const uint32_t d_model = info->d_model, d_inner = info->d_inner;
    walk->layer = -1;
    walk_stem(walk, info, member);
    for (walk->layer = 0; walk->layer < (int)info->n_layers; walk->layer++) {
        struct layer_weights *layer = &member->layers[walk->layer];
        if (info->local_conv) {
            layer->local_conv_weight = pass(walk, "local.weight", TABLE, 9, d_model);
            layer->local_conv_bias = vector(walk, "local.bias", d_model);
        }
        layer->in_proj[0] = linear(walk, "in_proj.x", NULL, d_inner, d_model);
        layer->in_proj[1] = linear(walk, "in_proj.z", NULL, d_inner, d_model);
        for (walk->scan = 0; walk->scan < (int)mamba_scans_per_layer(info); walk->scan++)
            walk_scan(walk, info, &layer->scan[walk->scan]);
        walk->scan = 0;
        layer->out_proj = linear(walk, "out_proj", NULL, d_model, d_inner);
    }
    walk->layer = -1;
    member->head = linear(walk, "head.weight", "head.bias", info->n_classes, d_model);
    info->parameters = walk->parameters - before;
}

static void walk_tensors(struct walk *walk, struct mamba_model *model)
{
    const struct mamba_info *info = &model->info;
    walk->in_ensemble = info->members > 1;
    for (walk->member = 0; walk->member < (int)info->members; walk->member++)
        walk_member(walk, &model->members[walk->member]);
}

/* ---- checks ------------------------------------------------------------------------------ */

/* Allocates zeros for the floats of a file with int8 weights; NULL if out of memory. */
static float *new_floats(uint64_t n)
{
    if (n > SIZE_MAX / 2 / sizeof(float)) /* a ptrdiff_t must hold the bytes */
        return NULL;
    const size_t bytes = (size_t)n * sizeof(float);
    float *floats = aligned_for_vectors(bytes);
    return floats ? memset(floats, 0, bytes) : NULL;
}

mamba_status mamba_check_tensors(struct mamba_model *model, const char *path, mamba_error *error)
{
    struct file_bytes *file = &model->file;
    const bool int8 = model->info.weight_type == WEIGHT_TYPE_INT8;
    struct walk measure = {.int8 = int8};
    walk_tensors(&measure, model);
    uint64_t expected = mamba_tensors_at(&model->info) + measure.bytes;
    if (file->size != expected)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "file size: got %zu bytes, expected the %llu that follow from its dims",
                          file->size, (unsigned long long)expected);
    model->info.parameters = measure.parameters;
    mamba_status status = mamba_file_rest(file, expected, path, error);
    if (status != MAMBA_OK)
        return status;

    uint32_t crc = mamba_crc32(file->data + CHECKED_FROM, file->size - CHECKED_FROM);
    if (crc != model->info.crc32)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "crc32: got %08X from its bytes, expected %08X (damaged file?)", crc,
                          model->info.crc32);

    const uint8_t *tensors = file->data + mamba_tensors_at(&model->info);
    struct walk place = {.base = (const float *)(const void *)tensors};
    if (int8) {
        float *floats = new_floats(measure.floats);
        if (!floats)
            return mamba_fail(error, MAMBA_ERR_MEMORY, path, "no memory for its %llu floats",
                              (unsigned long long)measure.floats);
        place = (struct walk){.base = floats, .expanded = floats, .file = tensors, .int8 = true};
    }
    walk_tensors(&place, model);
    if (int8) { /* the floats take the file's place */
        mamba_file_close(file);
        *file = (struct file_bytes){
            .data = (const uint8_t *)place.base, .access = FILE_COPIED, .fd = -1};
    }
    if (place.bad_tensor[0])
        return mamba_fail(
            error, MAMBA_ERR_MODEL, path,
            "tensor %s: float %llu: got %g, expected a finite number, or 0 as padding",
            place.bad_tensor, (unsigned long long)place.bad_index, (double)place.bad);
    return MAMBA_OK;
}
