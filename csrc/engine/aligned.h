/* Memory for vectors. */
#ifndef MAMBA_ENGINE_ALIGNED_H
#define MAMBA_ENGINE_ALIGNED_H

#include <stdlib.h>

/* Returns memory that starts at a multiple of 64 bytes; end it with free. Windows has no such
 * function: its malloc aligns to 16 bytes, which costs time only. */
static inline void *aligned_for_vectors(size_t bytes)
{
#if defined(_WIN32)
    return malloc(bytes);
#else
    return aligned_alloc(64, bytes);
#endif
}

#endif
