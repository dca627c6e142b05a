/* The files that the command reads besides the model: IDX images and labels (the format of
 * MNIST, yann.lecun.com), and one image as raw floats. Pixels and labels are used in place. */
#ifndef MAMBA_ENGINE_IDX_H
#define MAMBA_ENGINE_IDX_H

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

/* Each opens and checks `path`; what it leaves in *out, even after an error, is ended with the
 * matching close. */
mamba_status mamba_idx_images_open(struct idx_images *out, const char *path,
                                   enum file_access access, mamba_error *error);
mamba_status mamba_idx_labels_open(struct idx_labels *out, const char *path,
                                   enum file_access access, mamba_error *error);
mamba_status mamba_raw_image_open(struct raw_image *out, const char *path, size_t height,
                                  size_t width, enum file_access access, mamba_error *error);

/* The same for a `file` that is open already; `path` is its name in messages. */
mamba_status mamba_idx_images_check(struct idx_images *images, const char *path,
                                    mamba_error *error);
mamba_status mamba_idx_labels_check(struct idx_labels *labels, const char *path,
                                    mamba_error *error);
mamba_status mamba_raw_image_check(struct raw_image *image, size_t height, size_t width,
                                   const char *path, mamba_error *error);

void mamba_idx_images_close(struct idx_images *images);
void mamba_idx_labels_close(struct idx_labels *labels);
void mamba_raw_image_close(struct raw_image *image);

#endif
