#include "fold.h"

#include <string.h>

#include "aligned.h"
#include "copy.h"

enum { MAX_FLOATS = 1 << 18 }; /* of model->folds: 1 MiB */

struct sizes {
    size_t pixels;           /* values of a patch */
    size_t bias_rows;        /* length, or 1 if all tokens have the same bias */
    size_t d_model, d_inner; /* padded */
};

static struct sizes sizes_of(const struct mamba_info *info)
{
    return (struct sizes){
        .pixels = mamba_patch_values(info),
        .bias_rows = info->pos_embed ? info->length : 1,
        .d_model = (size_t)mamba_pad(info->d_model),
        .d_inner = (size_t)mamba_pad(info->d_inner),
    };
}

/* Sets the rows that in_proj multiplies [pixels + bias_rows, d_model]: the column of S of each
 * pixel, then stem.bias + pos_embed. */
static void gather_rows(float *rows, const struct mamba_model *model,
                        const struct member_weights *member, struct sizes n)
{
    float *bias = rows + n.pixels * n.d_model;
    for (size_t o = 0; o < n.d_model; o += PAD)
        mamba_copy_rows(rows + o, n.d_model, member->patch_stem.weight + o * n.pixels, PAD, PAD,
                        n.pixels);
    mamba_copy_rows(bias, n.d_model, member->patch_stem.bias, 0, n.d_model, n.bias_rows);
    if (member->pos_embed)
        model->kernels->add(bias, member->pos_embed, n.bias_rows * n.d_model);
}

/* Multiplies the rows into `folded`: W as P(d_inner, pixels), panel by panel, then the bias as
 * T(bias_rows, d_inner). */
static struct linear fold(float *folded, const struct mamba_kernels *kernels, const float *rows,
                          struct linear in_proj, struct sizes n)
{
    const size_t in = in_proj.in;
    float *bias = folded + n.d_inner * n.pixels;
    for (size_t o = 0; o < n.d_inner; o += PAD) {
        const struct linear panel = {.weight = in_proj.weight + o * in, .in = in, .out = PAD};
        kernels->matmul(folded + o * n.pixels, PAD, rows, n.d_model, n.pixels, &panel);
    }
    const struct linear all = {.weight = in_proj.weight, .in = in, .out = n.d_inner};
    kernels->matmul(bias, n.d_inner, rows + n.pixels * n.d_model, n.d_model, n.bias_rows, &all);
    return (struct linear){
        .weight = folded,
        .bias = bias,
        .bias_stride = n.bias_rows > 1 ? n.d_inner : 0,
        .in = n.pixels,
        .out = in_proj.out,
    };
}

/* Returns whether each of data [n] is 0 or has a magnitude in 2^-40..2^20. */
static bool moderate(const float *data, size_t n)
{
    const uint32_t low = (127u - 40) << 23, range = 60u << 23; /* of a float's bits */
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, data + i, sizeof bits);
        bits &= 0x7FFFFFFFu;
        any |= bits != 0 && bits - low > range;
    }
    return !any;
}

/* Returns whether nothing in a member's fold, or in its product with pixels in 0..1, underflows or
 * overflows. Products of two moderate weights are multiples of 2^-103 and at most 2^40. Sums of
 * 2^11 channels and 2^11 values of a patch, each at most 2^20, stay below 2^83. The norm comes
 * before in_proj without a fold, and after it with one: it multiplies by at most 2^12. Floats that
 * are not equal differ by more than 2^-25 of either, so that a normalised pixel of any float, too,
 * is 0 or at least 2^-40. */
static bool is_safe(const struct mamba_model *model, const struct member_weights *member)
{
    const struct mamba_info *info = &member->info;
    /* In the file, stem, pos_embed and in_proj are one array, and conv1d.weight is next. */
    const float *first = member->patch_stem.weight, *end = member->layers[0].scan[0].conv_weight;
    return info->norm_eps >= 0x1p-24f && info->pixel_mean >= 0x1p-15f * info->pixel_std &&
           moderate(model->pixel_values, 256) && moderate(first, (size_t)(end - first));
}

static bool saves_work(const struct mamba_info *info)
{
    return info->stem == STEM_PATCH && !info->local_conv &&
           mamba_patch_values(info) < info->d_model;
}

/* Folds a member into `folded`; returns where the next fold goes. */
static float *fold_member(float *folded, float *gathered, const struct mamba_model *model,
                          struct member_weights *member)
{
    const struct sizes n = sizes_of(&member->info);
    struct linear *in_proj = member->layers[0].in_proj;
    gather_rows(gathered, model, member, n);
    for (int part = 0; part < 2; part++, folded += (n.pixels + n.bias_rows) * n.d_inner)
        in_proj[part] = fold(folded, model->kernels, gathered, in_proj[part], n);
    member->folded = true;
    return folded;
}

bool mamba_fold(struct mamba_model *model)
{
    struct member_weights *first = model->members, *end = first + model->info.members;
    uint64_t all_folds = 0, gathered = 0;
    for (const struct member_weights *member = first; member < end; member++) {
        if (!saves_work(&member->info))
            continue;
        const struct sizes n = sizes_of(&member->info);
        const uint64_t rows = n.pixels + n.bias_rows;
        all_folds += 2 * rows * n.d_inner;
        gathered = rows * n.d_model > gathered ? rows * n.d_model : gathered;
        if (all_folds + gathered > MAX_FLOATS || !is_safe(model, member))
            return true;
    }
    if (all_folds == 0)
        return true;
    model->folds = aligned_for_vectors((size_t)(all_folds + gathered) * sizeof *model->folds);
    if (!model->folds)
        return false;
    float *folded = model->folds;
    for (struct member_weights *member = first; member < end; member++)
        if (saves_work(&member->info))
            folded = fold_member(folded, model->folds + all_folds, model, member);
    return true;
}
