/* A regular file as read-only memory. */
#ifndef MAMBA_ENGINE_FILE_BYTES_H
#define MAMBA_ENGINE_FILE_BYTES_H

#include "mamba.h"

/* A mapped file takes no memory of its own, but its bytes change with the file, and a read past the
 * end of a file that was shortened raises SIGBUS. A copy is safe from both. Borrowed bytes are the
 * caller's memory, without a file. */
enum file_access { FILE_MAPPED, FILE_COPIED, FILE_BORROWED };

/* A model file before its tensors has no more. */
enum { FILE_HEAD_BYTES = 128 + 64 * 64 + 65536 };
enum { STREAM_HEAD_BYTES = 256 };

#define UNKNOWN_SIZE SIZE_MAX

struct file_bytes {
    const uint8_t *data; /* [size], aligned for any type; NULL if size is 0 */
    size_t size;         /* of a stream that has not ended: UNKNOWN_SIZE */
    enum file_access access;
    size_t copied; /* bytes of a copy that have been read */
    int fd;        /* of the rest of a copy, or -1 */
};

/* Opens the regular file `path`; end it with mamba_file_close. A copy has up to FILE_HEAD_BYTES
 * at first: its reader checks them and the size, and then asks for the rest, so that a file never
 * takes more memory than its header demands. */
mamba_status mamba_file_open(struct file_bytes *out, const char *path, enum file_access access,
                             mamba_error *error);

/* Opens what can be read from `fd`, a pipe for instance, like a copied file of which
 * STREAM_HEAD_BYTES are read at first, and owns `fd`. */
mamba_status mamba_stream_open(struct file_bytes *out, int fd, const char *path,
                               mamba_error *error);

/* Reads the rest of a copy if the file has `expected` bytes, which the caller checks afterwards:
 * the size of a longer stream is then expected + 1. `data` may move. */
mamba_status mamba_file_rest(struct file_bytes *file, uint64_t expected, const char *path,
                             mamba_error *error);
void mamba_file_close(struct file_bytes *file);

#endif
