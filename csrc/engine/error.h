/* Every part of the engine reports an error in one way: fill the caller's mamba_error, return its
 * status. */
#ifndef MAMBA_ENGINE_ERROR_H
#define MAMBA_ENGINE_ERROR_H

#include "mamba.h"

/* Writes "path: message" (just "message" if path is NULL) into *error, which may be NULL, and
 * returns `status`. */
mamba_status mamba_fail(mamba_error *error, mamba_status status, const char *path,
                        const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
