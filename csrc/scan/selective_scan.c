/* Checks the arguments of the scan's kernels and calls them. */
#include "selective_scan.h"

#include "kernel.h"

static enum scan_status check_dims(const struct scan_dims *dims)
{
    if (dims->batch < 1 || dims->channels < 1 || dims->length < 1 || dims->states < 1 ||
        dims->rank < 0 || dims->threads < 1) {
        return SCAN_ERROR_DIMS;
    }
    return mamba_scan_kernels_for(dims->type, dims->isa) ? SCAN_OK : SCAN_ERROR_ISA;
}

static enum scan_status check(const struct scan_dims *dims, const struct scan_inputs *inputs,
                              const void *workspace)
{
    const enum scan_status status = check_dims(dims);
    if (status != SCAN_OK)
        return status;
    if (!inputs->u.data || !inputs->delta.data || !inputs->B.data || !inputs->C.data ||
        !inputs->A || !workspace || (dims->rank > 0) != (inputs->W != NULL)) {
        return SCAN_ERROR_NULL;
    }
    return SCAN_OK;
}

static enum scan_status check_gradients(const struct scan_inputs *inputs,
                                        const struct scan_gradients *grads)
{
    if (!grads->u.data || !grads->delta.data || !grads->B.data || !grads->C.data || !grads->A)
        return SCAN_ERROR_NULL;
    if ((inputs->z.data && !grads->z.data) || (inputs->D && !grads->D) ||
        (inputs->W && !grads->W) || (inputs->delta_bias && !grads->delta_bias)) {
        return SCAN_ERROR_NULL;
    }
    return SCAN_OK;
}

size_t mamba_scan_checkpoint_bytes(const struct scan_dims *dims)
{
    if (check_dims(dims) != SCAN_OK)
        return 0;
    return mamba_scan_kernels_for(dims->type, dims->isa)->scan_checkpoint_bytes(dims);
}

size_t mamba_scan_workspace_bytes(const struct scan_dims *dims)
{
    if (check_dims(dims) != SCAN_OK)
        return 0;
    return mamba_scan_kernels_for(dims->type, dims->isa)->scan_workspace_bytes(dims);
}

enum scan_status mamba_scan_forward(const struct scan_dims *dims, const struct scan_inputs *inputs,
                                    const struct scan_mutable_tensor *out, void *checkpoints,
                                    void *workspace)
{
    const enum scan_status status = check(dims, inputs, workspace);
    if (status != SCAN_OK)
        return status;
    if (!out->data)
        return SCAN_ERROR_NULL;
    mamba_scan_kernels_for(dims->type, dims->isa)
        ->scan_forward(dims, inputs, out, checkpoints, workspace);
    return SCAN_OK;
}

enum scan_status mamba_scan_backward(const struct scan_dims *dims, const struct scan_inputs *inputs,
                                     const struct scan_tensor *grad_out, const void *checkpoints,
                                     const struct scan_gradients *grads, void *workspace)
{
    const enum scan_status status = check(dims, inputs, workspace);
    if (status != SCAN_OK)
        return status;
    if (!grad_out->data || !checkpoints)
        return SCAN_ERROR_NULL;
    if (check_gradients(inputs, grads) != SCAN_OK)
        return SCAN_ERROR_NULL;
    mamba_scan_kernels_for(dims->type, dims->isa)
        ->scan_backward(dims, inputs, grad_out, checkpoints, grads, workspace);
    return SCAN_OK;
}
