/* Checks the arguments of the residual block's kernels and calls them. */
#include "mamba_block.h"

#include "kernel.h"

static enum scan_status check_dims(const struct block_dims *dims)
{
    const ptrdiff_t sizes[] = {dims->batch,    dims->length,     dims->d_model,
                               dims->channels, dims->states,     dims->rank,
                               dims->taps,     dims->directions, dims->threads};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] < 1)
            return SCAN_ERROR_DIMS;
    if (dims->directions > MAX_DIRECTIONS)
        return SCAN_ERROR_DIMS;
    return !mamba_scan_kernels_for(dims->type, dims->isa) ? SCAN_ERROR_ISA : SCAN_OK;
}

static enum scan_status check_weights(const struct block_dims *dims,
                                      const struct block_weights *weights)
{
    if (!weights->in_proj || !weights->out_proj)
        return SCAN_ERROR_NULL;
    for (ptrdiff_t i = 0; i < dims->directions; i++) {
        const struct block_direction *direction = &weights->direction[i];
        if (!direction->conv_weight || !direction->x_proj || !direction->dt_proj ||
            !direction->A_log) {
            return SCAN_ERROR_NULL;
        }
    }
    return SCAN_OK;
}

/* Is there memory for the gradient of every weight that is there? */
static enum scan_status check_gradients(const struct block_dims *dims,
                                        const struct block_weights *weights,
                                        const struct block_gradients *grads)
{
    bool missing = !grads->in_proj || !grads->out_proj || (weights->norm && !grads->norm);
    for (ptrdiff_t i = 0; i < dims->directions; i++) {
        const struct block_direction *weight = &weights->direction[i];
        const struct block_direction_gradients *grad = &grads->direction[i];
        missing = missing || !grad->conv_weight || !grad->x_proj || !grad->dt_proj ||
                  !grad->A_log || (weight->conv_bias && !grad->conv_bias) ||
                  (weight->dt_bias && !grad->dt_bias) || (weight->D && !grad->D);
    }
    return missing ? SCAN_ERROR_NULL : SCAN_OK;
}

size_t mamba_block_saved_bytes(const struct block_dims *dims)
{
    if (check_dims(dims) != SCAN_OK)
        return 0;
    return mamba_scan_kernels_for(dims->type, dims->isa)->block_saved_bytes(dims);
}

size_t mamba_block_workspace_bytes(const struct block_dims *dims)
{
    if (check_dims(dims) != SCAN_OK)
        return 0;
    return mamba_scan_kernels_for(dims->type, dims->isa)->block_workspace_bytes(dims);
}

enum scan_status mamba_block_forward(const struct block_dims *dims,
                                     const struct block_weights *weights, const void *input,
                                     void *out, void *saved, void *workspace)
{
    enum scan_status status = check_dims(dims);
    if (status == SCAN_OK)
        status = check_weights(dims, weights);
    if (status != SCAN_OK)
        return status;
    if (!input || !out || !workspace)
        return SCAN_ERROR_NULL;
    mamba_scan_kernels_for(dims->type, dims->isa)
        ->block_forward(dims, weights, input, out, saved, workspace);
    return SCAN_OK;
}

enum scan_status mamba_block_backward(const struct block_dims *dims,
                                      const struct block_weights *weights, const void *input,
                                      const void *saved, const void *grad_out, void *grad_input,
                                      const struct block_gradients *grads, void *workspace)
{
    enum scan_status status = check_dims(dims);
    if (status == SCAN_OK)
        status = check_weights(dims, weights);
    if (status == SCAN_OK)
        status = check_gradients(dims, weights, grads);
    if (status != SCAN_OK)
        return status;
    if (!input || !saved || !grad_out || !grad_input || !workspace)
        return SCAN_ERROR_NULL;
    mamba_scan_kernels_for(dims->type, dims->isa)
        ->block_backward(dims, weights, input, saved, grad_out, grad_input, grads, workspace);
    return SCAN_OK;
}
