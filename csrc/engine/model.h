/* A checked model file and where its tensors are. docs/format.md is the contract. */
#ifndef MAMBA_ENGINE_MODEL_H
#define MAMBA_ENGINE_MODEL_H

#include <stdbool.h>

#include "file_bytes.h"
#include "kernels/kernels.h"
#include "mamba.h"

enum { STEM_PATCH = 0, STEM_CONV = 1, STEM_CONV3 = 2 };
enum {
    DIRECTION_FORWARD = 0,
    DIRECTION_ALTERNATE = 1,
    DIRECTION_BIDIRECTIONAL = 2,
    DIRECTION_CROSS = 3
};
enum { POOL_MEAN = 0, POOL_LAST = 1 };
enum {
    MAX_LAYERS = 64,
    MAX_LENGTH = 65536,
    HEADER_BYTES = 256,
    MAX_STEM_CONVS = 3,
    MAX_MEMBERS = 64
};

/* Tensors lie inside the file, but for folds. Shapes in format.md's notation: V a padded vector, T
 * a table of padded vectors, P panels 16 outputs wide. */
struct scan_weights {
    const float *conv_weight; /* T(d_conv, d_inner) */
    const float *conv_bias;   /* V(d_inner) */
    const float *x_proj;      /* P(dt_rank + 2 d_state, d_inner) */
    const float *dt_weight;   /* P(d_inner, dt_rank) */
    const float *dt_bias;     /* V(d_inner) */
    const float *a;           /* free: T(d_state, d_inner); tied: V(d_inner); times log2(e) */
    const float *d;           /* V(d_inner) */
};

/* One 3x3 convolution of a conv stem. */
struct conv_weights {
    const float *weight; /* P(out, 9 * in) */
    const float *bias;   /* V(out) */
};

/* A half of in_proj. */
struct projection {
    const float *weight; /* P(d_inner, d_model); of a fold P(d_inner, pixels of a patch) */
    const float *start;  /* NULL; of a fold T(length, d_inner), or one row for all */
    size_t start_stride; /* 0 then */
};

struct layer_weights {
    const float *local_weight;    /* T(3 * 3, d_model), with local_conv only */
    const float *local_bias;      /* V(d_model), with local_conv only */
    struct projection in_proj[2]; /* x, z */
    struct scan_weights scan[2];  /* the second one in bidirectional layers only */
    const float *out_proj;        /* P(d_model, d_inner) */
};

struct member_weights {
    const float *stem_weight; /* patch stem: P(d_model, patch_height * patch_width) */
    const float *stem_bias;   /* patch stem: V(d_model) */
    struct conv_weights stem_convs[MAX_STEM_CONVS]; /* conv stems: those of mamba_stem_convs */
    const float *pos_embed;                         /* T(length, d_model), or NULL */
    struct layer_weights layers[MAX_LAYERS];        /* [n_layers] */
    const float *head_weight;                       /* P(n_classes, d_model) */
    const float *head_bias;                         /* V(n_classes) */
};

struct mamba_model {
    struct mamba_info info;
    struct file_bytes file;
    const struct mamba_kernels *kernels;
    float pixel_values[256]; /* of a byte, normalised */
    float *folds;            /* what the first layers' in_proj are then, or NULL: see fold.h */
    struct member_weights members[]; /* [info.members] */
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

/* The convolutions of a conv stem: channels of input and output, stride. */
struct stem_conv {
    uint32_t in, out, stride;
};

/* Sets `convs` and returns how many there are, first to last; the patch stem has none. */
size_t mamba_stem_convs(const struct mamba_info *info, struct stem_conv convs[MAX_STEM_CONVS]);

/* Output side of a 3x3 convolution with padding 1. */
static inline uint32_t mamba_strided(uint32_t n, uint32_t stride)
{
    return (n + stride - 1) / stride;
}

/* Rows of the grid of tokens that the stem makes of an image. */
static inline uint32_t mamba_grid_rows(const struct mamba_info *info)
{
    return info->stem == STEM_PATCH ? info->height / info->patch_height
                                    : mamba_strided(mamba_strided(info->height, 2), 2);
}

#endif
