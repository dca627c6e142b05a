/* The functions of <stdlib.h> that the engine calls. */
#ifndef MAMBA_WASM_STDLIB_H
#define MAMBA_WASM_STDLIB_H

#include <stddef.h>

void *malloc(size_t bytes);
void *calloc(size_t n, size_t bytes);
void *aligned_alloc(size_t alignment, size_t bytes);
void free(void *memory);

/* There is no environment. */
static inline char *getenv(const char *name)
{
    (void)name;
    return NULL;
}

#endif
