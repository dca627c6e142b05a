/* The files that the command reads apart from the model: images and labels as IDX files (MNIST's
 * format), and one image as raw floats. Pixels and labels are used in place. */
#ifndef MAMBA_CLI_IDX_H
#define MAMBA_CLI_IDX_H

#include "file_bytes.h"

enum { IDX_MAX_SIDE = 4096 }; /* as in a model file */

struct idx_images {
    struct file_bytes file;
    const uint8_t *pixels; /* [n, height, width] */
    size_t n, height, width;
};

struct idx_labels {
    struct file_bytes file;
    const uint8_t *labels; /* [n] */
    size_t n;
};

struct raw_image {
    struct file_bytes file;
    const float *pixels; /* [height, width], each finite and in 0..1 */
};

/* Each opens and checks `path`. Close out->file with mamba_file_close, after an error too. */
mamba_status mamba_idx_images_open(struct idx_images *out, const char *path,
                                   enum file_access access, mamba_error *error);
mamba_status mamba_idx_labels_open(struct idx_labels *out, const char *path,
                                   enum file_access access, mamba_error *error);
mamba_status mamba_raw_image_open(struct raw_image *out, const char *path, size_t height,
                                  size_t width, enum file_access access, mamba_error *error);

/* Each checks a `file` that is open already, which messages call `path`. */
mamba_status mamba_idx_images_check(struct idx_images *images, const char *path,
                                    mamba_error *error);
mamba_status mamba_idx_labels_check(struct idx_labels *labels, const char *path,
                                    mamba_error *error);
mamba_status mamba_raw_image_check(struct raw_image *image, size_t height, size_t width,
                                   const char *path, mamba_error *error);

#endif
