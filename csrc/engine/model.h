/* A checked model file and where its tensors are. docs/format.md is the contract. */
#ifndef MAMBA_ENGINE_MODEL_H
#define MAMBA_ENGINE_MODEL_H

#include <stdbool.h>

#include "file_bytes.h"
#include "kernels/kernels.h"
#include "mamba.h"

enum { STEM_PATCH = 0, STEM_CONV = 1 };
enum {
    DIRECTION_FORWARD = 0,
    DIRECTION_ALTERNATE = 1,
    DIRECTION_BIDIRECTIONAL = 2,
    DIRECTION_CROSS = 3
};
enum { POOL_MEAN = 0, POOL_LAST = 1 };
enum { MAX_LAYERS = 64, MAX_LENGTH = 65536, HEADER_BYTES = 256 };

/* Tensors lie inside the file. Shapes in format.md's notation: V a padded vector, T a table of
 * padded vectors, P panels 16 outputs wide. */
struct scan_weights {
    const float *conv_weight; /* T(d_conv, d_inner) */
    const float *conv_bias;   /* V(d_inner) */
    const float *x_proj;      /* P(dt_rank + 2 d_state, d_inner) */
    const float *dt_weight;   /* P(d_inner, dt_rank) */
    const float *dt_bias;     /* V(d_inner) */
    const float *a;           /* free: T(d_state, d_inner); tied: V(d_inner); times log2(e) */
    const float *d;           /* V(d_inner) */
};

struct layer_weights {
    const float *in_proj_x;      /* P(d_inner, d_model) */
    const float *in_proj_z;      /* P(d_inner, d_model) */
    struct scan_weights scan[2]; /* the second one in bidirectional layers only */
    const float *out_proj;       /* P(d_model, d_inner) */
};

struct mamba_model {
    struct mamba_info info;
    struct file_bytes file;
    const struct mamba_kernels *kernels;
    const float *stem_weight;  /* patch stem: P(d_model, patch_height * patch_width) */
    const float *stem_bias;    /* patch stem: V(d_model) */
    const float *conv1_weight; /* conv stem: P(stem_width, 9) */
    const float *conv1_bias;   /* conv stem: V(stem_width) */
    const float *conv2_weight; /* conv stem: P(d_model, 9 * stem_width) */
    const float *conv2_bias;   /* conv stem: V(d_model) */
    const float *pos_embed;    /* T(length, d_model), or NULL */
    struct layer_weights layers[MAX_LAYERS]; /* [n_layers] */
    const float *head_weight;                /* P(n_classes, d_model) */
    const float *head_bias;                  /* V(n_classes) */
};

/* n rounded up to whole vectors of 16 floats, the only row length that kernels meet. */
static inline uint64_t mamba_pad(uint64_t n)
{
    return (n + PAD - 1) / PAD * PAD;
}

static inline size_t mamba_scans_per_layer(const struct mamba_info *info)
{
    return info->direction == DIRECTION_BIDIRECTIONAL ? 2 : 1;
}

/* Output side of a 3x3 convolution with stride 2 and padding 1. */
static inline uint32_t mamba_halved(uint32_t n)
{
    return (n + 1) / 2;
}

/* Rows of the grid of tokens that the stem makes of an image. */
static inline uint32_t mamba_grid_rows(const struct mamba_info *info)
{
    return info->stem == STEM_CONV ? mamba_halved(mamba_halved(info->height))
                                   : info->height / info->patch_height;
}

#endif
