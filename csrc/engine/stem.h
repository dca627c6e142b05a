/* The stem: from a normalised image to tokens. */
#ifndef MAMBA_ENGINE_STEM_H
#define MAMBA_ENGINE_STEM_H

#include "context.h"

/* What the stems of all members need of context->image, before the first one's. */
void mamba_stem_image(struct mamba_context *context);

/* context->x [length, d_model] = tokens of context->image, without their positions. */
void mamba_stem(struct mamba_context *context);

#endif
