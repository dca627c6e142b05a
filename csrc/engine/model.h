/* An open model: its header and where its weights are. docs/format.md specifies the file.
 *
 * Shapes are written in that page's notation, n padded to a multiple of 16:
 *     V(n)        a vector
 *     T(rows, n)  a table of vectors
 *     P(out, in)  a matrix in panels of 16 outputs */
#ifndef MAMBA_ENGINE_MODEL_H
#define MAMBA_ENGINE_MODEL_H

#include "file_bytes.h"
#include "shape.h"

enum { MAX_LAYERS = 64, MAX_MEMBERS = 64 };

/* All pointers to weights point into the file, except those that fold.c replaces. */
struct scan_weights {
    const float *conv_weight; /* T(d_conv, d_inner) */
    const float *conv_bias;   /* V(d_inner) */
    const float *x_proj;      /* P(dt_rank + 2 d_state, d_inner) */
    const float *dt_weight;   /* P(d_inner, dt_rank) */
    const float *dt_bias;     /* V(d_inner) */
    const float *a;           /* free: T(d_state, d_inner); tied: V(d_inner); times log2(e) */
    const float *d;           /* V(d_inner) */
};

/* The weights of one struct stem_conv. */
struct stem_conv_weights {
    const float *weight; /* P(out, 9 * in) */
    const float *bias;   /* V(out) */
};

/* One half of in_proj, as in the file or folded with the patch stem (fold.h). */
struct projection {
    const float *weight; /* P(d_inner, d_model); folded: P(d_inner, pixels of a patch) */
    const float *bias;   /* NULL; folded: T(length, d_inner), or V(d_inner) for all tokens */
    size_t bias_stride;  /* 0 for V(d_inner) */
};

struct layer_weights {
    const float *local_conv_weight; /* T(9, d_model), or NULL without local_conv */
    const float *local_conv_bias;   /* V(d_model), or NULL */
    struct projection in_proj[2];   /* x, z */
    struct scan_weights scan[2];    /* the second one in bidirectional layers only */
    const float *out_proj;          /* P(d_model, d_inner) */
};

struct member_weights {
    const float *stem_weight; /* patch stem: P(d_model, patch_height * patch_width) */
    const float *stem_bias;   /* patch stem: V(d_model) */
    struct stem_conv_weights stem_convs[MAX_STEM_CONVS]; /* conv stems */
    const float *pos_embed;                              /* T(length, d_model), or NULL */
    struct layer_weights layers[MAX_LAYERS];             /* [n_layers] */
    const float *head_weight;                            /* P(n_classes, d_model) */
    const float *head_bias;                              /* V(n_classes) */
};

struct mamba_model {
    struct mamba_info info;
    struct file_bytes file;
    const struct mamba_kernels *kernels;
    float pixel_values[256];         /* normalised value of each byte */
    float *folds;                    /* memory of the folded in_proj of all members, or NULL */
    struct member_weights members[]; /* [info.members] */
};

#endif
