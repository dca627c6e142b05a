/* The checks in front of the block's kernels. */
#include "mamba_block.h"

#include "kernel.h"

static ScanStatus check_dims(const BlockDims *dims)
{
    const ptrdiff_t sizes[] = {dims->batch,    dims->length,     dims->d_model,
                               dims->channels, dims->states,     dims->rank,
                               dims->taps,     dims->directions, dims->threads};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i] < 1) {
            return SCAN_ERROR_DIMS;
        }
    }
    if (dims->directions > MAX_DIRECTIONS || dims->reverse < 0 || dims->reverse > 1 ||
        dims->tied < 0 || dims->tied > 1) {
        return SCAN_ERROR_DIMS;
    }
    return scan_kernels_for(dims->type, dims->isa) == NULL ? SCAN_ERROR_ISA : SCAN_OK;
}

static ScanStatus check_weights(const BlockDims *dims, const BlockWeights *weights)
{
    if (weights->in_proj == NULL || weights->out_proj == NULL) {
        return SCAN_ERROR_NULL;
    }
    for (ptrdiff_t i = 0; i < dims->directions; i++) {
        const BlockDirection *direction = &weights->direction[i];
        if (direction->conv_weight == NULL || direction->x_proj == NULL ||
            direction->dt_proj == NULL || direction->A_log == NULL) {
            return SCAN_ERROR_NULL;
        }
    }
    return SCAN_OK;
}

/* Is there memory for the gradient of every weight that is there? */
static ScanStatus check_gradients(const BlockDims *dims, const BlockWeights *weights,
                                  const BlockGradients *grads)
{
    int missing = grads->in_proj == NULL || grads->out_proj == NULL ||
                  (weights->norm != NULL && grads->norm == NULL);
    for (ptrdiff_t i = 0; i < dims->directions; i++) {
        const BlockDirection *weight = &weights->direction[i];
        const BlockDirectionGradients *grad = &grads->direction[i];
        missing = missing || grad->conv_weight == NULL || grad->x_proj == NULL ||
                  grad->dt_proj == NULL || grad->A_log == NULL ||
                  (weight->conv_bias != NULL && grad->conv_bias == NULL) ||
                  (weight->dt_bias != NULL && grad->dt_bias == NULL) ||
                  (weight->D != NULL && grad->D == NULL);
    }
    return missing ? SCAN_ERROR_NULL : SCAN_OK;
}

size_t mamba_block_saved_bytes(const BlockDims *dims)
{
    if (check_dims(dims) != SCAN_OK) {
        return 0;
    }
    return scan_kernels_for(dims->type, dims->isa)->block_saved_bytes(dims);
}

size_t mamba_block_workspace_bytes(const BlockDims *dims)
{
    if (check_dims(dims) != SCAN_OK) {
        return 0;
    }
    return scan_kernels_for(dims->type, dims->isa)->block_workspace_bytes(dims);
}

ScanStatus mamba_block_forward(const BlockDims *dims, const BlockWeights *weights,
                               const void *input, void *out, void *saved, void *workspace)
{
    ScanStatus status = check_dims(dims);
    if (status == SCAN_OK) {
        status = check_weights(dims, weights);
    }
    if (status != SCAN_OK) {
        return status;
    }
    if (input == NULL || out == NULL || workspace == NULL) {
        return SCAN_ERROR_NULL;
    }
    scan_kernels_for(dims->type, dims->isa)
        ->block_forward(dims, weights, input, out, saved, workspace);
    return SCAN_OK;
}

ScanStatus mamba_block_backward(const BlockDims *dims, const BlockWeights *weights,
                                const void *input, const void *saved, const void *grad_out,
                                void *grad_input, const BlockGradients *grads, void *workspace)
{
    ScanStatus status = check_dims(dims);
    if (status == SCAN_OK) {
        status = check_weights(dims, weights);
    }
    if (status == SCAN_OK) {
        status = check_gradients(dims, weights, grads);
    }
    if (status != SCAN_OK) {
        return status;
    }
    if (input == NULL || saved == NULL || grad_out == NULL || grad_input == NULL ||
        workspace == NULL) {
        return SCAN_ERROR_NULL;
    }
    scan_kernels_for(dims->type, dims->isa)
        ->block_backward(dims, weights, input, saved, grad_out, grad_input, grads, workspace);
    return SCAN_OK;
}
