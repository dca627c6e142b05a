/* The stem: from a normalised image to tokens. */
#ifndef MAMBA_ENGINE_STEM_H
#define MAMBA_ENGINE_STEM_H

#include "context.h"

/* Prepares context->image for the stem of the member, and of others of the same shape. */
void mamba_stem_image(struct mamba_context *context);

/* context->x [length, d_model] = tokens of context->image, without pos_embed. */
void mamba_stem(struct mamba_context *context);

#endif
