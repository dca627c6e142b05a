/* The local convolution before a layer. */
#ifndef MAMBA_ENGINE_LOCAL_H
#define MAMBA_ENGINE_LOCAL_H

#include "context.h"

/* context->x [length, d_model] = its 3x3 convolution, channel by channel, over the grid of tokens;
 * the middle taps hold x itself. */
void mamba_local_conv(struct mamba_context *context, const struct layer_weights *layer);

#endif
