#ifndef MAMBA_ENGINE_FINITE_H
#define MAMBA_ENGINE_FINITE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Neither NaN nor infinity. By bits: isfinite, x == x and the like vanish under -ffast-math. */
static inline bool mamba_is_finite(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7F800000u) != 0x7F800000u;
}

#endif
