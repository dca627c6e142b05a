#include "tensors.h"

#include <stdio.h>
#include <string.h>

#include "crc32.h"
#include "error.h"
#include "header.h"

_Static_assert(sizeof(float) == 4, "model files hold IEEE 754 binary32");

/* ---- the walk ---------------------------------------------------------------------------- */

/* A walk over the tensors in file order. Without a base it measures the file, with one it sets the
 * pointers, so that size and layout cannot disagree. header.c limits the dims, and asserts
 * that 64 bits cannot overflow. */
struct walk {
    const float *base;   /* the first tensor, or NULL to measure only */
    uint64_t floats;     /* passed so far, with padding */
    uint64_t parameters; /* passed so far, without padding */
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

/* Passes `rows` rows of P(n, in), and looks for the first bad float of all tensors: one that is not
 * finite, or is padding and not 0. */
static const float *pass(struct walk *walk, const char *name, uint32_t rows, uint32_t n,
                         uint32_t in)
{
    const uint64_t row = mamba_pad(n) * in, last_panel = row - PAD * (uint64_t)in;
    const float *tensor = walk->base ? walk->base + walk->floats : NULL;
    walk->floats += rows * row;
    walk->parameters += rows * (uint64_t)n * in;
    for (uint64_t first = 0; tensor && first < rows * row; first += row) {
        for (uint64_t i = 0; i < row; i++) {
            uint32_t bits;
            memcpy(&bits, tensor + first + i, sizeof bits);
            const bool is_padding = i >= last_panel && i % PAD > (n - 1) % PAD;
            if (bits << 1 >= (is_padding ? 1 : 0xFF000000u)) /* without its sign */
                set_bad(walk, name, first + i, tensor[first + i]);
        }
    }
    return tensor;
}

/* T(rows, n) and V(n) of format.md. */
static const float *table(struct walk *walk, const char *name, uint32_t rows, uint32_t n)
{
    return pass(walk, name, rows, n, 1);
}

static const float *vector(struct walk *walk, const char *name, uint32_t n)
{
    return table(walk, name, 1, n);
}

/* A matrix P(out, in) and, unless `bias` is NULL, its V(out). */
static struct linear linear(struct walk *walk, const char *weight, const char *bias, uint32_t out,
                            uint32_t in)
{
    struct linear result = {.in = in, .out = out};
    result.weight = pass(walk, weight, 1, out, in);
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
    member->pos_embed = info->pos_embed ? table(walk, "pos_embed", info->length, d_model) : NULL;
}

static void walk_scan(struct walk *walk, const struct mamba_info *info, struct scan_weights *scan)
{
    const uint32_t d_inner = info->d_inner, d_state = info->d_state;
    scan->conv_weight = table(walk, "conv1d.weight", info->d_conv, d_inner);
    scan->conv_bias = vector(walk, "conv1d.bias", d_inner);
    scan->x_proj = linear(walk, "x_proj", NULL, info->dt_rank + 2 * d_state, d_inner);
    scan->dt_proj = linear(walk, "dt_proj.weight", "dt_proj.bias", d_inner, info->dt_rank);
    scan->a = table(walk, "A", info->tied_a ? 1 : d_state, d_inner);
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
            layer->local_conv_weight = table(walk, "local.weight", 9, d_model);
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

mamba_status mamba_check_tensors(struct mamba_model *model, const char *path, mamba_error *error)
{
    struct file_bytes *file = &model->file;
    struct walk measure = {0};
    walk_tensors(&measure, model);
    uint64_t expected = mamba_tensors_at(&model->info) + measure.floats * sizeof(float);
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

    struct walk place = {
        .base = (const float *)(const void *)(file->data + mamba_tensors_at(&model->info))};
    walk_tensors(&place, model);
    if (place.bad_tensor[0])
        return mamba_fail(
            error, MAMBA_ERR_MODEL, path,
            "tensor %s: float %llu: got %g, expected a finite number, or 0 as padding",
            place.bad_tensor, (unsigned long long)place.bad_index, (double)place.bad);
    return MAMBA_OK;
}
