/* The patch stem and the first layer's in_proj as one product of fewer inputs: with a token's
 * pixels p and stem x = S p + bias + pos, and the norm's scale, which is the token's own,
 *
 *     in_proj rms(x) = scale (W p + start),   W = in_proj S,   start = in_proj (bias + pos).
 */
#ifndef MAMBA_ENGINE_FOLD_H
#define MAMBA_ENGINE_FOLD_H

#include "model.h"

/* Sets the folds of all members, where the products are smaller by it; false if there is no memory
 * for them. */
bool mamba_fold(struct mamba_model *model);

#endif
