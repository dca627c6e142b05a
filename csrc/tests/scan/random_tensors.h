/* Random tensors, and how far a kernel's tensor is from its exact value. */
#ifndef MNIST_MAMBA_TESTS_RANDOM_TENSORS_H
#define MNIST_MAMBA_TESTS_RANDOM_TENSORS_H

#include "scan_types.h"

#include <stdint.h>

/* The generator's state; who sets it back draws the same numbers again. */
extern uint64_t random_state;

double uniform(double low, double high);
ptrdiff_t between(ptrdiff_t low, ptrdiff_t high); /* both may come */

/* A dense (batch, channels, length) tensor of doubles, and its copy as the kernel sees it: of its
 * type, channels or time innermost, in either direction of time. */
typedef struct Tensor {
    ptrdiff_t shape[3];
    double *exact;
    void *memory;
    ScanMutableTensor view;
    int is_double;
} Tensor;

Tensor make_tensor(ptrdiff_t batch, ptrdiff_t channels, ptrdiff_t length, int is_double,
                   int channels_inner, int reversed, double low, double high);

/* A parameter vector or matrix: (1, count, 1). */
Tensor make_parameter(ptrdiff_t count, int is_double, double low, double high);

/* Sets element i, counted in the order of the dense tensor, and its exact value. Time innermost. */
void set_element(Tensor *tensor, ptrdiff_t i, double value);

void free_tensor(Tensor *tensor);
void clear_exact(Tensor *tensor);
size_t count_elements(const Tensor *tensor);
size_t count_bytes(const Tensor *tensor);
ScanTensor input(const Tensor *tensor);

/* Relative L2 distance from the exact values, and how much of it may be rounding. */
double relative_distance(const Tensor *got);
double tolerance(const Tensor *got);

/* The same between the exact values of two tensors of one shape. */
double exact_distance(const Tensor *got, const Tensor *wanted);

/* Memory of exactly this size, so that ASan sees an overrun, full of NaN, so that what is read
 * before it is written shows. */
void *nan_memory(size_t bytes);

#endif
