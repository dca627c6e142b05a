/* The functions of <string.h> that the engine calls. */
#ifndef MAMBA_WASM_STRING_H
#define MAMBA_WASM_STRING_H

#include <stddef.h>

/* Instructions of WebAssembly. */
#define memcpy __builtin_memcpy
#define memmove __builtin_memmove
#define memset __builtin_memset

int memcmp(const void *a, const void *b, size_t n);
void *memchr(const void *bytes, int byte, size_t n);
int strcmp(const char *a, const char *b);
size_t strcspn(const char *text, const char *stop);
size_t strlen(const char *text);

#endif
