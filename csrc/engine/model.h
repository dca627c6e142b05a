/* An open model: its dims and where its weights are. docs/format.md specifies the file.
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

/* All pointers to weights point into mamba_model.file, except those that fold.c replaces. */
struct scan_weights {
    const float *conv_weight; /* T(d_conv, d_inner) */
    const float *conv_bias;   /* V(d_inner) */
    struct linear x_proj;     /* d_inner to dt_rank + 2 d_state */
    struct linear dt_proj;    /* dt_rank to d_inner */
    const float *a;           /* free: T(d_state, d_inner); tied: V(d_inner); times log2(e) */
    const float *d;           /* V(d_inner) */
};

struct layer_weights {
    const float *local_conv_weight; /* T(9, d_model), or NULL without local_conv */
    const float *local_conv_bias;   /* V(d_model), or NULL */
    struct linear in_proj[2];       /* x, z: d_model (folded: a patch's values) to d_inner */
    struct scan_weights scan[2];    /* the second one in bidirectional layers only */
    struct linear out_proj;         /* d_inner to d_model */
};

struct member_weights {
    struct mamba_info info;                   /* the model's, with this member's shape */
    bool same_shape;                          /* as the member before */
    bool folded;                              /* in_proj of the first layer, by fold.c */
    struct linear patch_stem;                 /* patch_height * patch_width * channels to d_model */
    struct linear stem_convs[MAX_STEM_CONVS]; /* conv stems: 9 * in to out channels */
    const float *pos_embed;                   /* T(length, d_model), or NULL */
    struct layer_weights layers[MAX_LAYERS];  /* [n_layers] */
    struct linear head;                       /* d_model to n_classes */
};

struct mamba_model {
    struct mamba_info info;
    struct file_bytes file; /* of int8 weights, once they are expanded: the tensors as floats */
    const struct mamba_kernels *kernels;
    float pixel_values[256];         /* normalised value of each byte */
    const char *class_names;         /* [info.names_bytes] each ended by a NUL */
    float *folds;                    /* memory of the folded in_proj of all members, or NULL */
    struct member_weights members[]; /* [info.members] */
};

#endif
