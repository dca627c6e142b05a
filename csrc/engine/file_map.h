/* A regular file as read-only memory. */
#ifndef MAMBA_ENGINE_FILE_MAP_H
#define MAMBA_ENGINE_FILE_MAP_H

#include "mamba.h"

struct file_map {
    const uint8_t *data; /* [size], page-aligned; NULL if size is 0 */
    size_t size;
};

/* Maps the file `path`; refuses what is not a regular file. End it with mamba_unmap_file. */
mamba_status mamba_map_file(struct file_map *out, const char *path, mamba_error *error);
void mamba_unmap_file(struct file_map *map);

#endif
