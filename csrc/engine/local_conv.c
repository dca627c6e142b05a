#include "local_conv.h"

/* A grid of tokens [rows, columns, stride]. */
struct grid {
    const float *tokens;
    uint32_t rows, columns;
    size_t stride;
};

/* Sets the taps of the 3x3 convolution at one token: itself and its neighbours in the grid, with
 * their rows of `weight` [9, stride]. Returns how many there are. */
static size_t taps_at(struct tap taps[9], const struct grid *grid, const float *weight,
                      uint32_t row, uint32_t column)
{
    const uint32_t top = row > 0 ? row - 1 : row, left = column > 0 ? column - 1 : column;
    const uint32_t bottom = row + 1 < grid->rows ? row + 1 : row;
    const uint32_t right = column + 1 < grid->columns ? column + 1 : column;
    const size_t stride = grid->stride;
    size_t n = 0;
    for (uint32_t y = top; y <= bottom; y++) {
        for (uint32_t x = left; x <= right; x++) {
            const uint32_t k = 3 * (y + 1 - row) + (x + 1 - column);
            taps[n++] =
                (struct tap){weight + k * stride, grid->tokens + (y * grid->columns + x) * stride};
        }
    }
    return n;
}

void mamba_local_conv(struct mamba_context *context, const struct layer_weights *layer)
{
    const struct mamba_info *info = &context->model->info;
    const uint32_t rows = mamba_grid_rows(info), columns = mamba_grid_columns(info);
    const struct grid grid = {context->x, rows, columns, context->d_model};
    float *convolved = context->hidden, *out = convolved;
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t column = 0; column < columns; column++, out += grid.stride) {
            struct tap taps[9];
            const size_t n = taps_at(taps, &grid, layer->local_conv_weight, row, column);
            context->model->kernels->weighted_sum(out, layer->local_conv_bias, taps, n,
                                                  grid.stride);
        }
    }
    context->hidden = context->x;
    context->x = convolved;
}
