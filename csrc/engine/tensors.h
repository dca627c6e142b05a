/* The tensors of a model file: docs/format.md, "Tensors". */
#ifndef MAMBA_ENGINE_TENSORS_H
#define MAMBA_ENGINE_TENSORS_H

#include "model.h"

/* Checks what follows the class names of model->file: size, checksum, finite weights, padding of
 * zeros. Sets the pointers to all weights, and the parameters of the model and its members. */
mamba_status mamba_check_tensors(struct mamba_model *model, const char *path, mamba_error *error);

#endif
