/* Copies of many short rows. */
#ifndef MAMBA_ENGINE_COPY_H
#define MAMBA_ENGINE_COPY_H

#include <stddef.h>

enum { COPY_STEP = 4 }; /* floats */

/* Copies `rows` rows of n > 0 floats, one after the other, COPY_STEP floats at a time. Up to
 * COPY_STEP - 1 floats after a row are read and written, too: a row that follows overwrites them,
 * and after the last row there must be room. */
void mamba_copy_rows(float *to, size_t to_stride, const float *from, size_t from_stride, size_t n,
                     size_t rows);

#endif
