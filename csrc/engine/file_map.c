#if defined(_WIN32)
#error "the engine maps its files with POSIX mmap; Windows needs its own file_map.c"
#endif
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

static mamba_status map_descriptor(struct file_map *out, int fd, const char *path,
                                   mamba_error *error)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot stat: %s", strerror(errno));
    if (!S_ISREG(status.st_mode))
        return mamba_fail(error, MAMBA_ERR_IO, path, "not a regular file");
    if ((uint64_t)status.st_size > SIZE_MAX)
        return mamba_fail(error, MAMBA_ERR_MEMORY, path, "too large for this address space");
    out->size = (size_t)status.st_size;
    if (out->size == 0) /* mmap refuses length 0; the caller's size check words it better */
        return MAMBA_OK;
    void *data = mmap(NULL, out->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot map: %s", strerror(errno));
    out->data = data;
    return MAMBA_OK;
}

mamba_status mamba_map_file(struct file_map *out, const char *path, mamba_error *error)
{
    *out = (struct file_map){0};
    /* The path is resolved once: size and bytes are the same file's, whatever is renamed over
     * it. O_NONBLOCK, so that a FIFO is refused instead of waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot open: %s", strerror(errno));
    mamba_status status = map_descriptor(out, fd, path, error);
    close(fd);
    return status;
}

void mamba_unmap_file(struct file_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size);
    *map = (struct file_map){0};
}
