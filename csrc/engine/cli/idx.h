/* Readers of the command's files: images and labels as IDX files (MNIST's format), and one image as
 * raw floats. Pixels and labels are used in place. */
#ifndef MAMBA_CLI_IDX_H
#define MAMBA_CLI_IDX_H

#include "input.h"

enum { IDX_MAX_SIDE = 4096, IDX_MAX_CHANNELS = 4 }; /* as in a model file */

/* An IDX file of images (rank 3, or 4 with channels) or labels (rank 1). */
struct idx {
    struct input input;
    const uint8_t *data;               /* [n, height, width, channels] pixels, or [n] labels */
    size_t n, height, width, channels; /* labels: all but n are 1 */
};

enum { IDX_LABELS = 1, IDX_IMAGES = 3, IDX_COLOURS = 4 }; /* ranks */

/* Opens and checks `path`; IDX_IMAGES allows IDX_COLOURS, too. End it with
 * mamba_input_close(&out->input), after an error too. */
mamba_status mamba_idx_open(struct idx *out, const char *path, size_t rank, enum file_access access,
                            mamba_error *error);

/* Checks out->input, which is open already. Sets the rest of *out. */
mamba_status mamba_idx_check(struct idx *out, size_t rank, mamba_error *error);

/* Checks that images have the size of a model's. */
mamba_status mamba_idx_check_size(const struct idx *images, const mamba_info *info,
                                  mamba_error *error);

/* Checks that an open input is an image of n values: float32, each finite and in 0..1. */
mamba_status mamba_raw_image_check(struct input *input, size_t n, mamba_error *error);

#endif
