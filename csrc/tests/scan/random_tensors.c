#include "random_tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

uint64_t random_state = 1;

double uniform(double low, double high)
{
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return low + (high - low) * (double)(random_state >> 11) / 9007199254740992.0;
}

ptrdiff_t between(ptrdiff_t low, ptrdiff_t high)
{
    return low + (ptrdiff_t)uniform(0, (double)(high - low + 1));
}

bool coin(void)
{
    return between(0, 1) != 0;
}

/* Offset in the kernel's copy of element i of the dense tensor. */
static ptrdiff_t place(const struct tensor *tensor, ptrdiff_t i)
{
    const ptrdiff_t channels = tensor->shape[1];
    const ptrdiff_t length = tensor->shape[2];
    const ptrdiff_t *stride = tensor->view.stride;
    return i / (channels * length) * stride[0] + i / length % channels * stride[1] +
           i % length * stride[2];
}

void set_element(struct tensor *tensor, ptrdiff_t i, double value)
{
    if (tensor->is_double) {
        ((double *)tensor->view.data)[place(tensor, i)] = value;
        tensor->exact[i] = value;
    } else {
        ((float *)tensor->view.data)[place(tensor, i)] = (float)value;
        tensor->exact[i] = (float)value;
    }
}

static double get(const struct tensor *tensor, ptrdiff_t i)
{
    return tensor->is_double ? ((double *)tensor->view.data)[place(tensor, i)]
                             : (double)((float *)tensor->view.data)[place(tensor, i)];
}

struct tensor make_tensor(ptrdiff_t batch, ptrdiff_t channels, ptrdiff_t length, bool is_double,
                          bool channels_inner, bool reversed, double low, double high)
{
    const ptrdiff_t count = batch * channels * length;
    const ptrdiff_t size = is_double ? sizeof(double) : sizeof(float);
    struct tensor tensor = {{batch, channels, length}, NULL, NULL, {NULL, {0}}, is_double};
    ptrdiff_t *stride = tensor.view.stride;
    tensor.exact = malloc((size_t)count * sizeof(double) + 1); /* + 1: not NULL without elements */
    tensor.memory = malloc((size_t)(count * size) + (count == 0));
    stride[0] = channels * length;
    stride[1] = channels_inner ? 1 : length;
    stride[2] = channels_inner ? channels : 1;
    tensor.view.data = tensor.memory;
    if (reversed) {
        tensor.view.data = (char *)tensor.memory + (length - 1) * stride[2] * size;
        stride[2] = -stride[2];
    }
    for (ptrdiff_t i = 0; i < count; i++)
        set_element(&tensor, i, uniform(low, high));
    return tensor;
}

struct tensor make_parameter(ptrdiff_t count, bool is_double, double low, double high)
{
    return make_tensor(1, count, 1, is_double, false, false, low, high);
}

void free_tensor(struct tensor *tensor)
{
    free(tensor->exact);
    free(tensor->memory);
}

size_t count_elements(const struct tensor *tensor)
{
    return (size_t)(tensor->shape[0] * tensor->shape[1] * tensor->shape[2]);
}

size_t count_bytes(const struct tensor *tensor)
{
    return count_elements(tensor) * (tensor->is_double ? sizeof(double) : sizeof(float));
}

void clear_exact(struct tensor *tensor)
{
    memset(tensor->exact, 0, count_elements(tensor) * sizeof(double));
}

struct scan_tensor input(const struct tensor *tensor)
{
    const ptrdiff_t *stride = tensor->view.stride;
    const struct scan_tensor view = {tensor->view.data, {stride[0], stride[1], stride[2]}};
    return view;
}

double relative_distance(const struct tensor *got)
{
    double error = 0;
    double norm = 0;
    for (ptrdiff_t i = 0; i < (ptrdiff_t)count_elements(got); i++) {
        const double difference = get(got, i) - got->exact[i];
        error += difference * difference;
        norm += got->exact[i] * got->exact[i];
    }
    return sqrt(error) / (sqrt(norm) + 1e-30);
}

double exact_distance(const struct tensor *got, const struct tensor *wanted)
{
    double error = 0;
    double norm = 0;
    for (size_t i = 0; i < count_elements(wanted); i++) {
        const double difference = got->exact[i] - wanted->exact[i];
        error += difference * difference;
        norm += wanted->exact[i] * wanted->exact[i];
    }
    return sqrt(error) / (sqrt(norm) + 1e-30);
}

double tolerance(const struct tensor *got)
{
    return got->is_double ? 1e-12 : 1e-5;
}

void *nan_memory(size_t bytes)
{
    void *memory = malloc(bytes);
    memset(memory, 0xff, bytes);
    return memory;
}
