/* The patch stem and the first layer's in_proj as one matrix product with fewer inputs. For a token
 * with pixels p, x = S p + stem.bias + pos_embed, and so
 *
 *     in_proj norm(x) = scale (W p + bias)
 *     W    = in_proj S
 *     bias = in_proj (stem.bias + pos_embed)
 *
 * where scale is the token's own 1 / rms(x), and norm(x) = scale x. */
#ifndef MAMBA_ENGINE_FOLD_H
#define MAMBA_ENGINE_FOLD_H

#include "model.h"

/* Folds the stem into the first in_proj of each member where that saves work, unless it is unsafe
 * or too large for one of them. Returns false if out of memory. Runs in the mode of denormals.h. */
bool mamba_fold(struct mamba_model *model);

#endif
