/* The header of a model file: docs/format.md, "Header". */
#ifndef MAMBA_ENGINE_HEADER_H
#define MAMBA_ENGINE_HEADER_H

#include "file_bytes.h"

enum { HEADER_BYTES = 256 };
enum { CHECKED_FROM = 16 }; /* first byte that the CRC covers */

/* Reads and checks the header of `file`, which messages call `path`. Sets all of *info but
 * `parameters`. */
mamba_status mamba_check_header(struct mamba_info *info, const struct file_bytes *file,
                                const char *path, mamba_error *error);

#endif
