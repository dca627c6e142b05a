/* The checks in front of the convolution's kernels. */
#include "causal_conv.h"

#include "kernel.h"

static WorkPlan plan_for(const ConvDims *dims, const ScanKernels *kernels)
{
    return scan_work_plan(kernels->lanes, dims->batch, dims->channels, dims->length, 0);
}

static int dims_are_positive(const ConvDims *dims)
{
    return dims->batch >= 1 && dims->channels >= 1 && dims->length >= 1 && dims->taps >= 1 &&
           dims->threads >= 1;
}

static ScanStatus check(const ConvDims *dims, const ConvInputs *inputs, const void *workspace)
{
    if (!dims_are_positive(dims)) {
        return SCAN_ERROR_DIMS;
    }
    if (scan_kernels_for(dims->type, dims->isa) == NULL) {
        return SCAN_ERROR_ISA;
    }
    if (inputs->x.data == NULL || inputs->weight == NULL || workspace == NULL) {
        return SCAN_ERROR_NULL;
    }
    return SCAN_OK;
}

size_t causal_conv_workspace_bytes(const ConvDims *dims)
{
    const ScanKernels *kernels = scan_kernels_for(dims->type, dims->isa);
    if (!dims_are_positive(dims) || kernels == NULL) {
        return 0;
    }
    const WorkPlan plan = plan_for(dims, kernels);
    return kernels->conv_workspace_bytes(dims, &plan);
}

ScanStatus causal_conv_forward(const ConvDims *dims, const ConvInputs *inputs,
                               const ScanMutableTensor *out, void *workspace)
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
    kernels->conv_forward(dims, &plan, inputs, out, workspace);
    return SCAN_OK;
}

ScanStatus causal_conv_backward(const ConvDims *dims, const ConvInputs *inputs,
                                const ScanTensor *grad_out, const ConvGradients *grads,
                                void *workspace)
{
    const ScanStatus status = check(dims, inputs, workspace);
    if (status != SCAN_OK) {
        return status;
    }
    if (grad_out->data == NULL || grads->x.data == NULL || grads->weight == NULL ||
        (inputs->bias != NULL && grads->bias == NULL)) {
        return SCAN_ERROR_NULL;
    }
    const ScanKernels *kernels = scan_kernels_for(dims->type, dims->isa);
    const WorkPlan plan = plan_for(dims, kernels);
    kernels->conv_backward(dims, &plan, inputs, grad_out, grads, workspace);
    return SCAN_OK;
}
