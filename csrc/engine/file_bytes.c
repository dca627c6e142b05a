#if defined(_WIN32)
#error "the engine opens its files with POSIX calls; Windows needs its own file_bytes.c"
#endif
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "file_bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

/* Reads a copy up to its first `wanted` bytes. */
static mamba_status copy(struct file_bytes *file, size_t wanted, int fd, const char *path,
                         mamba_error *error)
{
    uint8_t *data = realloc((void *)(uintptr_t)file->data, wanted);
    if (!data)
        return mamba_fail(error, MAMBA_ERR_MEMORY, path, "no memory for its %zu bytes", wanted);
    file->data = data;
    while (file->copied < wanted) {
        const ssize_t got = read(fd, data + file->copied, wanted - file->copied);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return mamba_fail(error, MAMBA_ERR_IO, path, "cannot read: %s", strerror(errno));
        if (got == 0 && file->size == UNKNOWN_SIZE)
            file->size = wanted = file->copied;
        else if (got == 0)
            return mamba_fail(error, MAMBA_ERR_IO, path,
                              "file size: got %zu bytes, expected the %zu that it had when it was "
                              "opened",
                              file->copied, file->size);
        file->copied += (size_t)got;
    }
    return MAMBA_OK;
}

static mamba_status open_descriptor(struct file_bytes *out, int fd, const char *path,
                                    mamba_error *error)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot stat: %s", strerror(errno));
    if (!S_ISREG(status.st_mode))
        return mamba_fail(error, MAMBA_ERR_IO, path, "not a regular file");
    if ((uint64_t)status.st_size > SIZE_MAX / 2)
        return mamba_fail(error, MAMBA_ERR_MEMORY, path, "too large for this address space");
    out->size = (size_t)status.st_size;
    if (out->size == 0) /* mmap refuses it; the caller's check of the size has a better message */
        return MAMBA_OK;
    if (out->access == FILE_COPIED)
        return copy(out, out->size < FILE_HEAD_BYTES ? out->size : FILE_HEAD_BYTES, fd, path,
                    error);
    void *data = mmap(NULL, out->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return mamba_fail(error, errno == ENOMEM ? MAMBA_ERR_MEMORY : MAMBA_ERR_IO, path,
                          "cannot map: %s", strerror(errno));
    out->data = data;
    return MAMBA_OK;
}

mamba_status mamba_file_open(struct file_bytes *out, const char *path, enum file_access access,
                             mamba_error *error)
{
    *out = (struct file_bytes){.access = access, .fd = -1};
    /* The path is resolved once, so that size and bytes are of the same file, whatever is renamed
     * over it. O_NONBLOCK: a FIFO is refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot open: %s", strerror(errno));
    mamba_status status = open_descriptor(out, fd, path, error);
    if (status == MAMBA_OK && access == FILE_COPIED && out->copied < out->size)
        out->fd = fd;
    else
        close(fd);
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
    close(file->fd);
    file->fd = -1;
    return status;
}

void mamba_file_close(struct file_bytes *file)
{
    void *data = (void *)(uintptr_t)file->data;
    if (file->access == FILE_COPIED && file->fd >= 0)
        close(file->fd);
    if (file->access == FILE_COPIED)
        free(data);
    if (data && file->access == FILE_MAPPED)
        munmap(data, file->size);
    *file = (struct file_bytes){0};
}
