/* Pictures as a plane of numbers: windows of any size and place, of one channel of the model. */
#ifndef MAMBA_ENGINE_PICTURE_H
#define MAMBA_ENGINE_PICTURE_H

#include <stdbool.h>

#include "mamba.h"

/* A picture, and the weights (of 256) that its bytes have in one channel of the model. */
struct plane {
    const mamba_picture *picture;
    uint32_t weights[4];
    bool composite;    /* put the picture on `backdrop` where its alpha is below 255 */
    uint32_t backdrop; /* 0..255 */
};

/* A window of a picture: columns x0..x1 and rows y0..y1, not empty and inside the picture. */
struct window {
    double x0, y0, x1, y1;
};

double mamba_pixel(const struct plane *plane, size_t x, size_t y);

/* Returns the mean of a window's pixels; one that is partly inside counts with that part. */
double mamba_window_mean(const struct plane *plane, const struct window *window);

/* Sets `out` [height, width] to the digit in the picture as MNIST shows its own. */
mamba_status mamba_prepare_digit(const struct plane *grey, uint32_t height, uint32_t width,
                                 uint8_t *out, mamba_error *error);

#endif
