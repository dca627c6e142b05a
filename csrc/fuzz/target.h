/* Helpers of the fuzz targets. Each target defines libFuzzer's entry point; mutator.c is a main for
 * it where there is no libFuzzer. A target calls abort() if something is wrong that no sanitizer
 * sees. */
#ifndef MAMBA_FUZZ_TARGET_H
#define MAMBA_FUZZ_TARGET_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mamba.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Returns a copy that ends where its memory ends, so that ASan sees a read past it. Never NULL. */
static inline uint8_t *exact_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        abort();
    memcpy(copy, data, size);
    return copy;
}

/* Checks that an error has the allowed status and says what was got and what was expected. */
static inline void check_error(mamba_status status, const mamba_error *error, mamba_status allowed)
{
    if (status != allowed || error->status != status || !strstr(error->message, "got") ||
        !strstr(error->message, "expected"))
        abort();
}

#endif
