#ifndef MAMBA_ENGINE_CRC32_H
#define MAMBA_ENGINE_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* Returns the CRC-32 (zlib's) of data [size]. */
uint32_t mamba_crc32(const uint8_t *data, size_t size);

#endif
