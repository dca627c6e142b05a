#include "local_conv.h"

void mamba_local_conv(struct mamba_context *context, const struct layer_weights *layer)
{
    const struct mamba_info *info = &context->member->info;
    const uint32_t rows = mamba_grid_rows(info), columns = mamba_grid_columns(info);
    const size_t stride = context->d_model;
    float *convolved = context->hidden, *out = convolved;
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t column = 0; column < columns; column++, out += stride) {
            struct tap taps[9]; /* the token and its neighbours in the grid */
            size_t n = 0;
            for (uint32_t y = row > 0 ? row - 1 : 0; y <= row + 1 && y < rows; y++) {
                for (uint32_t x = column > 0 ? column - 1 : 0; x <= column + 1 && x < columns;
                     x++) {
                    const uint32_t k = 3 * (y + 1 - row) + (x + 1 - column);
                    taps[n++] = (struct tap){layer->local_conv_weight + k * stride,
                                             context->x + (y * columns + x) * stride};
                }
            }
            context->model->kernels->weighted_sum(out, layer->local_conv_bias, taps, n, stride);
        }
    }
    context->hidden = context->x;
    context->x = convolved;
}
