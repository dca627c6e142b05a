#include "local_conv.h"

/* The terms of a 3x3 convolution's sum at one token of a grid; returns how many of its neighbours
 * there are. Outside the grid is not below 0 but very large. */
static size_t neighbours(struct term terms[9], const float *tokens, const float *weight,
                         uint32_t row, uint32_t column, uint32_t rows, uint32_t columns,
                         size_t stride)
{
    size_t n = 0;
    for (uint32_t y = row - 1; y != row + 2; y++)
        for (uint32_t x = column - 1; x != column + 2; x++, weight += stride)
            if (y < rows && x < columns)
                terms[n++] = (struct term){weight, tokens + (y * columns + x) * stride};
    return n;
}

void mamba_local_conv(struct mamba_context *context, const struct layer_weights *layer)
{
    const struct mamba_info *info = &context->model->info;
    const uint32_t rows = mamba_grid_rows(info), columns = info->length / rows;
    const size_t stride = context->d_model;
    float *convolved = context->u, *out = convolved;
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t column = 0; column < columns; column++, out += stride) {
            struct term terms[9];
            const size_t n = neighbours(terms, context->x, layer->local_weight, row, column, rows,
                                        columns, stride);
            context->model->kernels->weighted_sum(out, layer->local_bias, terms, n, stride);
        }
    }
    context->u = context->x; /* the two change places */
    context->x = convolved;
}
