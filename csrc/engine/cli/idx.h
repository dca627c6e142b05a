/* The files that the command reads apart from the model: images and labels as IDX files (MNIST's
 * format), and one image as raw floats. Pixels and labels are used in place. */
#ifndef MAMBA_CLI_IDX_H
#define MAMBA_CLI_IDX_H

#include "file_bytes.h"

enum { IDX_MAX_SIDE = 4096 }; /* as in a model file */

/* An IDX file of images (rank 3) or labels (rank 1). */
struct idx {
    struct file_bytes file;
    const uint8_t *data;     /* [n, height, width] pixels, or [n] labels */
    size_t n, height, width; /* labels: height and width are 1 */
};

enum { IDX_LABELS = 1, IDX_IMAGES = 3 }; /* ranks */

/* Opens and checks `path`. Close out->file with mamba_file_close, after an error too. */
mamba_status mamba_idx_open(struct idx *out, const char *path, size_t rank, enum file_access access,
                            mamba_error *error);

/* Checks out->file, which is open already and which messages call `path`. Sets the rest of *out. */
mamba_status mamba_idx_check(struct idx *out, const char *path, size_t rank, mamba_error *error);

/* Checks that an open file is an image: float32 [height, width], each finite and in 0..1. */
mamba_status mamba_raw_image_check(struct file_bytes *file, const char *path, size_t height,
                                   size_t width, mamba_error *error);

#endif
