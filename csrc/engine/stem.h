/* The stem: from a normalised image to tokens. */
#ifndef MAMBA_ENGINE_STEM_H
#define MAMBA_ENGINE_STEM_H

#include "context.h"

/* context->x [length, d_model] = tokens of context->image, without their positions. */
void mamba_stem(struct mamba_context *context);

#endif
