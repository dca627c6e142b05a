/* The scratch memory of one thread: every activation of a forward pass. */
#ifndef MAMBA_ENGINE_CONTEXT_H
#define MAMBA_ENGINE_CONTEXT_H

#include "model.h"

/* Arrays of floats, laid out in the caller's arena. All but `image` are those of one member's
 * shape, and share their memory with those of other shapes. Their rows are padded: d_model,
 * d_inner, x_width and n_classes mean multiples of PAD here. */
struct mamba_context {
    const struct mamba_model *model;
    const struct member_weights *member; /* the member that runs now */
    uint32_t asked;                      /* members that the last image needed */
    float *arrays;                       /* memory of all arrays */
    mamba_trace trace;
    void *trace_user;
    size_t d_model, d_inner, x_width; /* padded d_model, d_inner, dt_rank + 2 d_state */

    float *image;                        /* [height, width, channels] normalised pixels */
    float *im2col;                       /* [outputs, inputs of each] of a matrix product */
    float *conv_output;                  /* conv stems: [outputs, channels] of that product */
    float *feature_maps[MAX_STEM_CONVS]; /* conv stems: the input of each convolution */

    /* The layers. local_conv makes x and hidden trade places. */
    float *x;      /* [length, d_model] the residual stream */
    float *hidden; /* [length, d_model] rms(x), the mixer's input */
    float *scale;  /* [length] 1 / rms of each row of x */
    float *xs;     /* [length, d_inner] in_proj.x hidden */
    float *z;      /* [length, d_inner] in_proj.z hidden, the gate */
    float *u;      /* [length, d_inner] silu(conv1d(xs)), the scan's input */
    float *x_dbc;  /* [length, x_width] x_proj u: dt, B and C side by side */
    float *delta;  /* [length, d_inner] step sizes */
    float *y;      /* [length, d_inner] the scan's output */
    float *y_b;    /* [length, d_inner] the second scan's output; bidirectional only */
    float *state;  /* [d_state, PAD] the scan's state of PAD channels */

    /* The head. */
    float *pooled; /* [d_model] */
    float *logits; /* [n_classes] of one member */
};

/* Makes `member` the one that runs. Places its arrays, of which only `image` keeps its values,
 * unless the member has the shape of the one before. */
void mamba_use_member(struct mamba_context *context, const struct member_weights *member);

#endif
