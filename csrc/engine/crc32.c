#include "crc32.h"

/* "Slicing by 8" (Kounavis and Berry, 2005): table[k][b] is the CRC of byte b followed by k zero
 * bytes, so that eight bytes take eight independent look-ups instead of a chain of eight. */
enum { SLICES = 8 };
static const uint32_t POLYNOMIAL = 0xEDB88320u; /* bit-reversed */

static void fill_tables(uint32_t table[SLICES][256])
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1u) ? POLYNOMIAL : 0u);
        table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++) {
        for (int k = 1; k < SLICES; k++) {
            uint32_t shorter = table[k - 1][byte];
            table[k][byte] = (shorter >> 8) ^ table[0][shorter & 0xFFu];
        }
    }
}

static uint32_t read_u32(const uint8_t *data)
{
    return (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
           (uint32_t)data[3] << 24;
}

uint32_t mamba_crc32(const uint8_t *data, size_t size)
{
    uint32_t table[SLICES][256]; /* refilled in microseconds: no global state, no race */
    fill_tables(table);
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; size -= 8, data += 8) {
        uint32_t low = crc ^ read_u32(data);
        uint32_t high = read_u32(data + 4);
        crc = table[7][low & 0xFFu] ^ table[6][low >> 8 & 0xFFu] ^ table[5][low >> 16 & 0xFFu] ^
              table[4][low >> 24] ^ table[3][high & 0xFFu] ^ table[2][high >> 8 & 0xFFu] ^
              table[1][high >> 16 & 0xFFu] ^ table[0][high >> 24];
    }
    for (; size > 0; size--, data++)
        crc = (crc >> 8) ^ table[0][(crc ^ *data) & 0xFFu];
    return crc ^ 0xFFFFFFFFu;
}
