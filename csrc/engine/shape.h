/* The shapes that follow from the dims of a model file: rows of the grid of tokens, convolutions of
 * a stem, padded sizes. Pure functions of the dims (docs/format.md). */
#ifndef MAMBA_ENGINE_SHAPE_H
#define MAMBA_ENGINE_SHAPE_H

#include "copy.h"
#include "kernels/kernels.h"
#include "mamba.h"

/* Values of the fields. */
enum { PREPARATION_RESIZE = 0, PREPARATION_MNIST = 1 };
enum { WEIGHT_TYPE_FLOAT32 = 0, WEIGHT_TYPE_INT8 = 1 };
enum { STEM_PATCH = 0, STEM_CONV = 1, STEM_CONV3 = 2 };
enum {
    DIRECTION_FORWARD = 0,
    DIRECTION_ALTERNATE = 1,
    DIRECTION_BIDIRECTIONAL = 2,
    DIRECTION_CROSS = 3
};
enum { POOL_MEAN = 0, POOL_LAST = 1 };

enum { MAX_STEM_CONVS = 3 };

/* One 3x3 convolution of a conv stem: channels in and out, and its stride. */
struct stem_conv {
    uint32_t in, out, stride;
};

/* Sets the convolutions of a conv stem, first to last; returns how many: 0 for the patch stem. */
size_t mamba_stem_convs(const struct mamba_info *info, struct stem_conv convs[MAX_STEM_CONVS]);

/* n rounded up to whole vectors of PAD floats, the only row length that kernels see. */
static inline uint64_t mamba_pad(uint64_t n)
{
    return (n + PAD - 1) / PAD * PAD;
}

/* Values of an image [height, width, channels]. */
static inline size_t mamba_image_values(const struct mamba_info *info)
{
    return (size_t)info->height * info->width * info->channels;
}

/* Values of a patch [patch_height, patch_width, channels]; 0 for the conv stems. */
static inline size_t mamba_patch_values(const struct mamba_info *info)
{
    return (size_t)info->patch_height * info->patch_width * info->channels;
}

static inline size_t mamba_scans_per_layer(const struct mamba_info *info)
{
    return info->direction == DIRECTION_BIDIRECTIONAL ? 2 : 1;
}

/* Output height or width of a 3x3 convolution with padding 1. */
static inline uint32_t mamba_conv_side(uint32_t side, uint32_t stride)
{
    return (side + stride - 1) / stride;
}

/* The grid of tokens that the stem makes of an image. */
static inline uint32_t mamba_grid_rows(const struct mamba_info *info)
{
    return info->stem == STEM_PATCH ? info->height / info->patch_height
                                    : mamba_conv_side(mamba_conv_side(info->height, 2), 2);
}

static inline uint32_t mamba_grid_columns(const struct mamba_info *info)
{
    return info->stem == STEM_PATCH ? info->width / info->patch_width
                                    : mamba_conv_side(mamba_conv_side(info->width, 2), 2);
}

/* Floats of a feature map of the conv stems (stem.c): with a border around it and room for a copy's
 * last step, in whole vectors. */
static inline size_t mamba_feature_map_floats(uint64_t height, uint64_t width, uint64_t channels)
{
    return (size_t)mamba_pad((height + 2) * (width + 2) * channels + COPY_STEP - 1);
}

/* Floats from one row of an im2col matrix to the next, for `inputs` values per output. */
static inline size_t mamba_im2col_stride(uint64_t inputs)
{
    return (size_t)mamba_pad(inputs + COPY_STEP - 1);
}

/* Rows of a feature map, `width` outputs each, that one matrix product of a conv stem computes:
 * few, so that their im2col matrix stays in the cache, yet enough to fill the kernels' tiles. The
 * last product of a map takes what is left: fewer than twice as many. */
static inline size_t mamba_conv_rows(size_t width)
{
    enum { OUTPUTS = 24 };
    return (OUTPUTS + width - 1) / width;
}

#endif
