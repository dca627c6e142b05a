/* The local convolution before a layer's mixer. */
#ifndef MAMBA_ENGINE_LOCAL_CONV_H
#define MAMBA_ENGINE_LOCAL_CONV_H

#include "context.h"

/* context->x [length, d_model] = the 3x3 convolution of each of its channels over the grid of
 * tokens. (Export has added x itself to the weights of the middle tap.) */
void mamba_local_conv(struct mamba_context *context, const struct layer_weights *layer);

#endif
