#ifndef MAMBA_ENGINE_FINITE_H
#define MAMBA_ENGINE_FINITE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Returns whether `value` is neither NaN nor infinity. It looks at the bits because `make fast`
 * builds with -Ofast, which removes isfinite, x == x and the like. */
static inline bool mamba_is_finite(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7F800000u) != 0x7F800000u;
}

#endif
