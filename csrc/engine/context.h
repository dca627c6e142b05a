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
    size_t d_model, d_inner, x_width;     /* padded d_model, d_inner, dt_rank + 2 d_state */
    float *image;                         /* [height, width] normalised pixels */
    float *window;                        /* [tokens or pixels in a row, inputs of each] gathered */
    float *stem_maps[MAX_STEM_CONVS - 1]; /* conv stems: [height, width, channels] between two */
    float *x;                             /* [length, d_model] the residual stream */
    float *u;                             /* [length, d_model] normalised */
    float *xs;                            /* [length, d_inner] in_proj.x u */
    float *z;                             /* [length, d_inner] in_proj.z u */
    float *c;                             /* [length, d_inner] after convolution and SiLU */
    float *x_dbc;                         /* [length, x_width] dt, B and C */
    float *delta;                         /* [length, d_inner] */
    float *y;                             /* [length, d_inner] scan output */
    float *y_b;    /* [length, d_inner] the second scan's; bidirectional only */
    float *state;  /* [d_state, PAD] */
    float *pooled; /* [d_model] */
    float *logits; /* [pad(n_classes)] one member's */
};

/* Floats from one row of the stem's `window` to the next; inputs: of one output of the stem. */
size_t mamba_window_stride(uint32_t inputs);

#endif
