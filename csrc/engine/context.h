/* One thread's scratch memory: every activation of a forward pass. */
#ifndef MAMBA_ENGINE_CONTEXT_H
#define MAMBA_ENGINE_CONTEXT_H

#include "model.h"

/* Shapes of the activations; `length` tokens. A padded count is the stride of its rows. */
struct mamba_context {
    const struct mamba_model *model;
    const struct member_weights *member; /* the one whose turn it is */
    mamba_trace trace;
    void *trace_user;
    size_t d_model, d_inner, x_width; /* padded d_model, d_inner, dt_rank + 2 d_state */
    float *image;                     /* [height, width] normalised pixels */
    float *window; /* [tokens or pixels, inputs of each] gathered; a fold's input, too */
    float *pixels; /* conv stems: [pixels, channels] of a convolution */
    float *stem_maps[MAX_STEM_CONVS]; /* conv stems: each one's input, a picture (stem.c) */
    float *x;                         /* [length, d_model] the residual stream */
    float *u;                         /* [length, d_model] normalised */
    float *scale;                     /* [length] of the norm */
    float *xs;                        /* [length, d_inner] in_proj.x u */
    float *z;                         /* [length, d_inner] in_proj.z u */
    float *c;                         /* [length, d_inner] after convolution and SiLU */
    float *x_dbc;                     /* [length, x_width] dt, B and C */
    float *delta;                     /* [length, d_inner] */
    float *y;                         /* [length, d_inner] scan output */
    float *y_b;                       /* [length, d_inner] the second scan's; bidirectional only */
    float *state;                     /* [d_state, PAD] */
    float *pooled;                    /* [d_model] */
    float *logits;                    /* [pad(n_classes)] one member's */
};

/* Floats of a picture of the conv stems: a border around it, whole vectors. */
size_t mamba_picture_floats(uint64_t height, uint64_t width, uint64_t channels);

/* Rows of so many outputs that a conv stem's product takes at once: few, so that their windows stay
 * in the cache, but whole tiles. At the end, up to one less than twice as many. */
static inline size_t mamba_stem_rows(size_t width)
{
    enum { PIXELS = 24 };
    return (PIXELS + width - 1) / width;
}

/* Floats of what a stem gathers for one output. */
size_t mamba_window_stride(uint64_t inputs);

#endif
