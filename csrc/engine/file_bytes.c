#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "file_bytes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "system.h"

/* Reads a copy up to its first `wanted` bytes. */
static mamba_status copy(struct file_bytes *file, size_t wanted, int fd, const char *path,
                         mamba_error *error)
{
    uint8_t *data = realloc((void *)(uintptr_t)file->data, wanted);
    if (!data)
        return mamba_fail(error, MAMBA_ERR_MEMORY, path, "no memory for its %zu bytes", wanted);
    file->data = data;
    while (file->copied < wanted) {
        const ptrdiff_t got = system_read(fd, data + file->copied, wanted - file->copied);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return mamba_fail(error, MAMBA_ERR_IO, path, "cannot read: %s", strerror(errno));
        if (got == 0 && file->size == UNKNOWN_SIZE)
            file->size = wanted = file->copied;
        else if (got == 0)
            return mamba_fail(error, MAMBA_ERR_IO, path,
                              "file size: got %zu bytes, expected the %zu when it was opened",
                              file->copied, file->size);
        file->copied += (size_t)got;
    }
    return MAMBA_OK;
}

static mamba_status open_descriptor(struct file_bytes *out, int fd, const char *path,
                                    mamba_error *error)
{
    struct file_status status;
    if (!system_status(fd, &status))
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot read: %s", strerror(errno));
    if (!status.is_regular)
        return mamba_fail(error, MAMBA_ERR_IO, path, "not a regular file");
    if (status.size > SIZE_MAX / 2)
        return mamba_fail(error, MAMBA_ERR_MEMORY, path, "too large for this address space");
    out->size = (size_t)status.size;
    if (out->size ==
        0) /* it cannot be mapped; the caller's check of the size has a better message */
        return MAMBA_OK;
    if (out->access == FILE_COPIED)
        return copy(out, out->size < FILE_HEAD_BYTES ? out->size : FILE_HEAD_BYTES, fd, path,
                    error);
    out->data = system_map(fd, out->size);
    if (!out->data)
        return mamba_fail(error, errno == ENOMEM ? MAMBA_ERR_MEMORY : MAMBA_ERR_IO, path,
                          "cannot map: %s", strerror(errno));
    return MAMBA_OK;
}

mamba_status mamba_file_open(struct file_bytes *out, const char *path, enum file_access access,
                             mamba_error *error)
{
    *out = (struct file_bytes){.access = access, .fd = -1};
    /* The path is resolved once, so that size and bytes are of the same file, whatever is renamed
     * over it. */
    int fd = system_open(path);
    if (fd < 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot open: %s", strerror(errno));
    mamba_status status = open_descriptor(out, fd, path, error);
    if (status == MAMBA_OK && access == FILE_COPIED && out->copied < out->size)
        out->fd = fd;
    else
        system_close(fd);
    return status;
}

mamba_status mamba_stream_open(struct file_bytes *out, int fd, const char *path, mamba_error *error)
{
    *out = (struct file_bytes){.size = UNKNOWN_SIZE, .access = FILE_COPIED, .fd = fd};
    return copy(out, STREAM_HEAD_BYTES, fd, path, error);
}

mamba_status mamba_file_rest(struct file_bytes *file, uint64_t expected, const char *path,
                             mamba_error *error)
{
    const uint64_t wanted = expected + (file->size == UNKNOWN_SIZE);
    if (file->access != FILE_COPIED || file->fd < 0 ||
        (file->size != UNKNOWN_SIZE && file->size != expected))
        return MAMBA_OK;
    mamba_status status = MAMBA_OK;
    if (wanted >= UNKNOWN_SIZE)
        status = mamba_fail(error, MAMBA_ERR_MEMORY, path, "too large for this address space");
    else if (file->copied < wanted)
        status = copy(file, (size_t)wanted, file->fd, path, error);
    if (file->size == UNKNOWN_SIZE)
        file->size = file->copied;
    system_close(file->fd);
    file->fd = -1;
    return status;
}

void mamba_file_close(struct file_bytes *file)
{
    if (file->access == FILE_COPIED && file->fd >= 0)
        system_close(file->fd);
    if (file->access == FILE_COPIED)
        free((void *)(uintptr_t)file->data);
    if (file->data && file->access == FILE_MAPPED)
        system_unmap(file->data, file->size);
    *file = (struct file_bytes){0};
}
