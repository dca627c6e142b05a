/* The checks in front of the scan's kernels. */
#include "selective_scan.h"

#include "kernel.h"

static WorkPlan plan_for(const ScanDims *dims, const ScanKernels *kernels)
{
    return scan_work_plan(kernels->lanes, dims->batch, dims->channels, dims->length);
}

static int dims_are_positive(const ScanDims *dims)
{
    return dims->batch >= 1 && dims->channels >= 1 && dims->length >= 1 && dims->states >= 1 &&
           dims->rank >= 0 && dims->threads >= 1;
}

static ScanStatus check(const ScanDims *dims, const ScanInputs *inputs, const void *workspace)
{
    if (!dims_are_positive(dims)) {
        return SCAN_ERROR_DIMS;
    }
    if (scan_kernels_for(dims->type, dims->isa) == NULL) {
        return SCAN_ERROR_ISA;
    }
    if (inputs->u.data == NULL || inputs->delta.data == NULL || inputs->B.data == NULL ||
        inputs->C.data == NULL || inputs->A == NULL || workspace == NULL ||
        (dims->rank > 0) != (inputs->W != NULL)) {
        return SCAN_ERROR_NULL;
    }
    return SCAN_OK;
}

static ScanStatus check_gradients(const ScanInputs *inputs, const ScanGradients *grads)
{
    if (grads->u.data == NULL || grads->delta.data == NULL || grads->B.data == NULL ||
        grads->C.data == NULL || grads->A == NULL) {
        return SCAN_ERROR_NULL;
    }
    if ((inputs->z.data != NULL && grads->z.data == NULL) ||
        (inputs->D != NULL && grads->D == NULL) || (inputs->W != NULL && grads->W == NULL) ||
        (inputs->delta_bias != NULL && grads->delta_bias == NULL)) {
        return SCAN_ERROR_NULL;
    }
    return SCAN_OK;
}

size_t selective_scan_checkpoint_bytes(const ScanDims *dims)
{
    const ScanKernels *kernels = scan_kernels_for(dims->type, dims->isa);
    if (!dims_are_positive(dims) || kernels == NULL) {
        return 0;
    }
    const WorkPlan plan = plan_for(dims, kernels);
    return kernels->scan_checkpoint_bytes(dims, &plan);
}

size_t selective_scan_workspace_bytes(const ScanDims *dims)
{
    const ScanKernels *kernels = scan_kernels_for(dims->type, dims->isa);
    if (!dims_are_positive(dims) || kernels == NULL) {
        return 0;
    }
    const WorkPlan plan = plan_for(dims, kernels);
    return kernels->scan_workspace_bytes(dims, &plan);
}

ScanStatus selective_scan_forward(const ScanDims *dims, const ScanInputs *inputs,
                                  const ScanMutableTensor *out, void *checkpoints, void *workspace)
{
    const ScanStatus status = check(dims, inputs, workspace);
    if (status != SCAN_OK) {
        return status;
    }
    if (out->data == NULL) {
        return SCAN_ERROR_NULL;
    }
    const ScanKernels *kernels = scan_kernels_for(dims->type, dims->isa);
    const WorkPlan plan = plan_for(dims, kernels);
    kernels->scan_forward(dims, &plan, inputs, out, checkpoints, workspace);
    return SCAN_OK;
}

ScanStatus selective_scan_backward(const ScanDims *dims, const ScanInputs *inputs,
                                   const ScanTensor *grad_out, const void *checkpoints,
                                   const ScanGradients *grads, void *workspace)
{
    const ScanStatus status = check(dims, inputs, workspace);
    if (status != SCAN_OK) {
        return status;
    }
    if (grad_out->data == NULL || checkpoints == NULL) {
        return SCAN_ERROR_NULL;
    }
    if (check_gradients(inputs, grads) != SCAN_OK) {
        return SCAN_ERROR_NULL;
    }
    const ScanKernels *kernels = scan_kernels_for(dims->type, dims->isa);
    const WorkPlan plan = plan_for(dims, kernels);
    kernels->scan_backward(dims, &plan, inputs, grad_out, checkpoints, grads, workspace);
    return SCAN_OK;
}
