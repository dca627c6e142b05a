#include "fold.h"

#include <stdlib.h>
#include <string.h>

#include "copy.h"
#include "denormals.h"

enum { MAX_FLOATS = 1 << 18 }; /* of all members' folds, and what they are made of: 1 MiB */

/* Sizes; d_model and d_inner padded. */
struct sizes {
    size_t pixels; /* of a patch */
    size_t starts; /* tokens whose starts differ */
    size_t d_model, d_inner;
};

/* The rows that in_proj multiplies [pixels + starts, d_model]: what one pixel adds to a token, and
 * the tokens of no pixels. */
static void gather_rows(float *rows, const struct mamba_model *model,
                        const struct member_weights *member, struct sizes n)
{
    for (size_t o = 0; o < n.d_model; o += PAD)
        mamba_copy_rows(rows + o, n.d_model, member->stem_weight + o * n.pixels, PAD, PAD,
                        n.pixels);
    rows += n.pixels * n.d_model;
    mamba_copy_rows(rows, n.d_model, member->stem_bias, 0, n.d_model, n.starts);
    if (member->pos_embed)
        model->kernels->add(rows, member->pos_embed, n.starts * n.d_model);
}

/* Into `at`: P(d_inner, pixels), panel by panel, then T(starts, d_inner). */
static struct projection fold(float *at, const struct mamba_model *model, const float *rows,
                              const float *in_proj, struct sizes n)
{
    const size_t in = model->info.d_model;
    float *start = at + n.d_inner * n.pixels;
    for (size_t o = 0; o < n.d_inner; o += PAD)
        model->kernels->matmul(at + o * n.pixels, PAD, rows, n.d_model, in_proj + o * in, NULL, 0,
                               n.pixels, in, PAD);
    model->kernels->matmul(start, n.d_inner, rows + n.pixels * n.d_model, n.d_model, in_proj, NULL,
                           0, n.starts, in, n.d_inner);
    return (struct projection){at, start, n.starts > 1 ? n.d_inner : 0};
}

bool mamba_fold(struct mamba_model *model)
{
    const struct mamba_info *info = &model->info;
    const struct sizes n = {
        .pixels = (size_t)info->patch_height * info->patch_width,
        .starts = info->pos_embed ? info->length : 1,
        .d_model = (size_t)mamba_pad(info->d_model),
        .d_inner = (size_t)mamba_pad(info->d_inner),
    };
    const uint64_t rows = n.pixels + n.starts, gathered_at = 2 * rows * n.d_inner * info->members;
    const uint64_t floats = gathered_at + rows * n.d_model;
    if (info->stem != STEM_PATCH || info->local_conv || n.pixels >= info->d_model ||
        floats > MAX_FLOATS)
        return true;
    float *at = model->folds = aligned_alloc(64, (size_t)floats * sizeof *at);
    if (!at)
        return false;
    float *gathered = at + gathered_at;
    const uint64_t saved = denormals_off();
    for (size_t i = 0; i < info->members; i++) {
        struct member_weights *member = &model->members[i];
        gather_rows(gathered, model, member, n);
        for (int part = 0; part < 2; part++, at += rows * n.d_inner) {
            struct projection *in_proj = &member->layers[0].in_proj[part];
            *in_proj = fold(at, model, gathered, in_proj->weight, n);
        }
    }
    denormals_restore(saved);
    return true;
}
