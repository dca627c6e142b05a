/* Copying many short rows. */
#ifndef MAMBA_ENGINE_COPY_H
#define MAMBA_ENGINE_COPY_H

#include <stddef.h>

enum { COPY_STEP = 4 }; /* floats */

/* Copies rows of n > 0 floats, one after the other, COPY_STEP floats at a time: what lies up to
 * COPY_STEP - 1 floats behind a row is read and written, too. So where places follow each other
 * upwards, the next row writes over that, and behind the last one there must be room. */
void mamba_copy_rows(float *to, size_t to_stride, const float *from, size_t from_stride, size_t n,
                     size_t rows);

#endif
