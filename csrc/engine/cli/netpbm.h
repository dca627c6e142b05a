/* Reader of pictures: binary PGM (P5, grey) and PPM (P6, RGB) of 8 or 16 bits. */
#ifndef MAMBA_CLI_NETPBM_H
#define MAMBA_CLI_NETPBM_H

#include "input.h"

/* Tells a picture from an image of raw floats by its first bytes: P1 to P7 and a space. */
bool mamba_is_netpbm(const struct file_bytes *file);

/* Reads an open input, and sets *out to its pixels: those of the file, or a copy with values of
 * 0..255 that *copy owns; free it after an error too. */
mamba_status mamba_netpbm_read(mamba_picture *out, uint8_t **copy, struct input *input,
                               mamba_error *error);

#endif
