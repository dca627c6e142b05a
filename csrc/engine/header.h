/* The header of a model file, and the records of its members: docs/format.md. */
#ifndef MAMBA_ENGINE_HEADER_H
#define MAMBA_ENGINE_HEADER_H

#include "model.h"

enum { HEADER_BYTES = 128, MEMBER_BYTES = 64 };
enum { NAMES_STEP = 64 };   /* names_bytes is a multiple of it */
enum { CHECKED_FROM = 16 }; /* first byte that the CRC covers */

/* Returns where the class names and the tensors begin in the file. */
static inline size_t mamba_names_at(const struct mamba_info *info)
{
    return HEADER_BYTES + (size_t)info->members * MEMBER_BYTES;
}

static inline size_t mamba_tensors_at(const struct mamba_info *info)
{
    return mamba_names_at(info) + info->names_bytes;
}

/* Reads and checks the header of `file`, which messages call `path`, and checks that the file has
 * all bytes before the tensors. Sets all of *info but the shape and `parameters`. */
mamba_status mamba_check_header(struct mamba_info *info, const struct file_bytes *file,
                                const char *path, mamba_error *error);

/* Checks an exit margin that is not a file's. */
mamba_status mamba_check_exit_margin(float got, mamba_error *error);

/* Reads and checks the members' records of model->file. Sets the shapes of model->info and of each
 * member. */
mamba_status mamba_check_members(struct mamba_model *model, const char *path, mamba_error *error);

#endif
