/* A regular file as read-only memory. */
#ifndef MAMBA_ENGINE_FILE_BYTES_H
#define MAMBA_ENGINE_FILE_BYTES_H

#include "mamba.h"

/* A mapped file costs no memory of its own, but its bytes change with the file, and reading past
 * the end of one that has been shortened since raises SIGBUS. A copy is safe from both. Borrowed
 * bytes are the caller's, and no file. */
enum file_access { FILE_MAPPED, FILE_COPIED, FILE_BORROWED };

struct file_bytes {
    const uint8_t *data; /* [size], aligned for any type; NULL if size is 0 */
    size_t size;
    enum file_access access;
};

/* Opens the file `path`; refuses what is not a regular file. End it with mamba_file_close. */
mamba_status mamba_file_open(struct file_bytes *out, const char *path, enum file_access access,
                             mamba_error *error);
void mamba_file_close(struct file_bytes *file);

#endif
