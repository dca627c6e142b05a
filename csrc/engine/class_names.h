/* The class names of a model file: docs/format.md. */
#ifndef MAMBA_ENGINE_CLASS_NAMES_H
#define MAMBA_ENGINE_CLASS_NAMES_H

#include "model.h"

/* Copies the names of model->file to `names` [info.names_bytes], which the model uses from then on,
 * and checks the copy: a mapped file may change. */
mamba_status mamba_check_class_names(struct mamba_model *model, char *names, const char *path,
                                     mamba_error *error);

#endif
