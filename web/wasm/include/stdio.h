/* The functions of <stdio.h> that the engine calls, for the conversions that libc.c lists. */
#ifndef MAMBA_WASM_STDIO_H
#define MAMBA_WASM_STDIO_H

#include <stdarg.h>
#include <stddef.h>

int snprintf(char *out, size_t size, const char *format, ...);
int vsnprintf(char *out, size_t size, const char *format, va_list arguments);

#endif
