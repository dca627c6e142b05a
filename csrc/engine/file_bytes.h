/* A regular file as read-only memory. */
#ifndef MAMBA_ENGINE_FILE_BYTES_H
#define MAMBA_ENGINE_FILE_BYTES_H

#include "mamba.h"

/* A mapped file costs no memory of its own, but its bytes change with the file, and reading past
 * the end of one that has been shortened since raises SIGBUS. A copy is safe from both. Borrowed
 * bytes are the caller's, and no file. */
enum file_access { FILE_MAPPED, FILE_COPIED, FILE_BORROWED };

enum { FILE_HEAD_BYTES = 256 };

struct file_bytes {
    const uint8_t *data; /* [size], aligned for any type; NULL if size is 0 */
    size_t size;
    enum file_access access;
    size_t copied; /* bytes of a copy that are there */
    int fd;        /* where the rest of a copy comes from, or -1 */
};

/* Opens the file `path`; refuses what is not a regular file. End it with mamba_file_close.
 * Of a copy, FILE_HEAD_BYTES are there: a reader checks them and the size, and asks for the rest
 * then, so that a file costs no more memory than its own first bytes justify. */
mamba_status mamba_file_open(struct file_bytes *out, const char *path, enum file_access access,
                             mamba_error *error);

/* Makes all bytes be there; `data` may move. */
mamba_status mamba_file_rest(struct file_bytes *file, const char *path, mamba_error *error);
void mamba_file_close(struct file_bytes *file);

#endif
