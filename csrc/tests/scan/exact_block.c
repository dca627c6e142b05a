#include "exact_block.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* y (rows, outputs) += x w^T for x (rows, inputs), w (outputs, inputs) */
static void multiply(const double *x, const double *w, double *y, ptrdiff_t rows, ptrdiff_t inputs,
                     ptrdiff_t outputs)
{
    for (ptrdiff_t i = 0; i < rows * outputs; i++)
        for (ptrdiff_t k = 0; k < inputs; k++)
            y[i] += x[i / outputs * inputs + k] * w[i % outputs * inputs + k];
}

/* grad_x += grad_y w */
static void multiply_input_grad(const double *grad_y, const double *w, double *grad_x,
                                ptrdiff_t rows, ptrdiff_t inputs, ptrdiff_t outputs)
{
    for (ptrdiff_t i = 0; i < rows * outputs; i++)
        for (ptrdiff_t k = 0; k < inputs; k++)
            grad_x[i / outputs * inputs + k] += grad_y[i] * w[i % outputs * inputs + k];
}

/* grad_w += grad_y^T x */
static void multiply_weight_grad(const double *grad_y, const double *x, double *grad_w,
                                 ptrdiff_t rows, ptrdiff_t inputs, ptrdiff_t outputs)
{
    for (ptrdiff_t i = 0; i < rows * outputs; i++)
        for (ptrdiff_t k = 0; k < inputs; k++)
            grad_w[i % outputs * inputs + k] += grad_y[i] * x[i / outputs * inputs + k];
}

static double *zeros(ptrdiff_t count)
{
    return calloc((size_t)count, sizeof(double));
}

/* 1 / rms(x) */
static double inverse_rms(const struct block *block, const double *x)
{
    double sum = 0;
    for (ptrdiff_t m = 0; m < block->dims.d_model; m++)
        sum += x[m] * x[m];
    return 1 / sqrt(sum / (double)block->dims.d_model + block->dims.norm_eps);
}

static void exact_norm(const struct block *block, double *hidden)
{
    const ptrdiff_t width = block->dims.d_model;
    for (ptrdiff_t row = 0; row < block->dims.batch * block->dims.length; row++) {
        const double *x = block->input.exact + row * width;
        const double scale = block->given[NORM] ? inverse_rms(block, x) : 1;
        for (ptrdiff_t m = 0; m < width; m++) {
            const double weight = block->given[NORM] ? block->weight[NORM].exact[m] : 1;
            hidden[row * width + m] = x[m] * scale * weight;
        }
    }
}

/* The gradient of the normed input -> the gradient of the input, residual included. */
static void exact_norm_backward(struct block *block, const double *grad_hidden)
{
    const ptrdiff_t width = block->dims.d_model;
    const double *weight = block->weight[NORM].exact;
    for (ptrdiff_t row = 0; row < block->dims.batch * block->dims.length; row++) {
        const double *x = block->input.exact + row * width;
        const double *grad = grad_hidden + row * width;
        double *grad_x = block->grad_input.exact + row * width;
        if (!block->given[NORM]) {
            memcpy(grad_x, grad, (size_t)width * sizeof *grad);
            continue;
        }
        const double scale = inverse_rms(block, x);
        double dot = 0;
        for (ptrdiff_t m = 0; m < width; m++) {
            dot += grad[m] * weight[m] * x[m];
            block->grad[NORM].exact[m] += grad[m] * x[m] * scale;
        }
        for (ptrdiff_t m = 0; m < width; m++) {
            grad_x[m] = block->grad_out.exact[row * width + m] + grad[m] * weight[m] * scale -
                        x[m] * dot * scale * scale * scale / (double)width;
        }
    }
}

/* One direction: its scan, whose time runs in the direction's order, and its weights. */
struct direction {
    struct scan scan;
    const struct block_dims *dims;
    bool back;                   /* from the last step to the first */
    const struct tensor *weight; /* DIRECTION_WEIGHTS of them */
    struct tensor *grad;
    double *sums; /* (batch, channels, length): the convolution's, before the SiLU */
};

/* Row of step t of an item in tensors (batch, length, width). */
static ptrdiff_t row_of(const struct direction *direction, ptrdiff_t item, ptrdiff_t t)
{
    const ptrdiff_t length = direction->dims->length;
    return item * length + (direction->back ? length - 1 - t : t);
}

/* Element i of (batch, channels, length) in (batch, length, 2 channels), of x or of z. */
static ptrdiff_t place_of(const struct direction *direction, ptrdiff_t i, bool of_z)
{
    const ptrdiff_t length = direction->dims->length;
    const ptrdiff_t channels = direction->dims->channels;
    const ptrdiff_t row = row_of(direction, i / (length * channels), i % length);
    return (2 * row + of_z) * channels + i / length % channels;
}

static void copy_exact(struct tensor *to, const struct tensor *from)
{
    memcpy(to->exact, from->exact, count_elements(from) * sizeof *from->exact);
}

/* Element i of A (channels, states) is -multiple_of exp(A_log[log_index]). */
static size_t log_index(const struct block_dims *dims, size_t i)
{
    return dims->tied ? i / (size_t)dims->states : i;
}

static double multiple_of(const struct block_dims *dims, size_t i)
{
    return dims->tied ? (double)(i % (size_t)dims->states + 1) : 1;
}

static struct direction make_direction(struct block *block, ptrdiff_t index)
{
    const struct block_dims *dims = &block->dims;
    const int start = direction_start(index);
    const struct scan_dims scan_dims = {.batch = dims->batch,
                                        .channels = dims->channels,
                                        .length = dims->length,
                                        .states = dims->states,
                                        .rank = dims->rank,
                                        .threads = 1,
                                        .delta_softplus = true,
                                        .type = SCAN_FLOAT64,
                                        .isa = SCAN_ISA_SCALAR};
    struct direction direction = {.scan = make_scan(&scan_dims, false, false),
                                  .dims = dims,
                                  .back = dims->reverse != (index == 1),
                                  .weight = block->weight + start,
                                  .grad = block->grad + start,
                                  .sums = zeros(dims->batch * dims->channels * dims->length)};
    const struct tensor *weight = direction.weight;
    struct scan *scan = &direction.scan;
    copy_exact(&scan->w, &weight[DT_PROJ]);
    copy_exact(&scan->bias, &weight[DT_BIAS]);
    copy_exact(&scan->d, &weight[SKIP]);
    for (size_t i = 0; i < count_elements(&scan->a); i++)
        scan->a.exact[i] = -multiple_of(dims, i) * exp(weight[A_LOG].exact[log_index(dims, i)]);
    scan->has_bias = block->given[start + DT_BIAS];
    scan->has_d = block->given[start + SKIP];
    return direction;
}

/* Fill the scan's u, by convolution and SiLU of x, its z and its grad_out. */
static void exact_conv(struct direction *direction, bool has_bias, const double *xz,
                       const double *grad_y)
{
    const ptrdiff_t taps = direction->dims->taps;
    const ptrdiff_t length = direction->dims->length;
    const ptrdiff_t channels = direction->dims->channels;
    struct scan *scan = &direction->scan;
    for (ptrdiff_t i = 0; i < direction->dims->batch * channels * length; i++) {
        const ptrdiff_t d = i / length % channels;
        double sum = has_bias ? direction->weight[CONV_BIAS].exact[d] : 0;
        for (ptrdiff_t ago = 0; ago < taps && ago <= i % length; ago++) {
            sum += direction->weight[CONV_WEIGHT].exact[d * taps + taps - 1 - ago] *
                   xz[place_of(direction, i - ago, false)];
        }
        direction->sums[i] = sum;
        scan->u.exact[i] = silu(sum);
        scan->z.exact[i] = xz[place_of(direction, i, true)];
        const ptrdiff_t row = row_of(direction, i / (length * channels), i % length);
        scan->grad_out.exact[i] = grad_y[row * channels + d];
    }
}

static void exact_conv_backward(struct direction *direction, const double *xz, double *grad_xz)
{
    const ptrdiff_t taps = direction->dims->taps;
    const ptrdiff_t length = direction->dims->length;
    const ptrdiff_t channels = direction->dims->channels;
    const double *weight = direction->weight[CONV_WEIGHT].exact;
    for (ptrdiff_t i = 0; i < direction->dims->batch * channels * length; i++) {
        const ptrdiff_t d = i / length % channels;
        const double grad = direction->scan.grad_u.exact[i] * silu_slope(direction->sums[i]);
        direction->grad[CONV_BIAS].exact[d] += grad;
        for (ptrdiff_t ago = 0; ago < taps && ago <= i % length; ago++) {
            const ptrdiff_t tap = d * taps + taps - 1 - ago;
            const ptrdiff_t place = place_of(direction, i - ago, false);
            direction->grad[CONV_WEIGHT].exact[tap] += grad * xz[place];
            grad_xz[place] += grad * weight[tap];
        }
        grad_xz[place_of(direction, i, true)] += direction->scan.grad_z.exact[i];
    }
}

/* The row of dt, B or C (batch, rows, length) that row `column` of x_proj makes. */
static double *projected(const struct direction *direction, const struct tensor *const parts[3],
                         ptrdiff_t item, ptrdiff_t column)
{
    const ptrdiff_t rank = direction->dims->rank;
    const ptrdiff_t states = direction->dims->states;
    const int part = (column >= rank) + (column >= rank + states);
    const ptrdiff_t row = column - (part > 0 ? rank : 0) - (part > 1 ? states : 0);
    const ptrdiff_t rows = part > 0 ? states : rank;
    return parts[part]->exact + (item * rows + row) * direction->dims->length;
}

/* x_proj, one element of its weight at a time: its output or, if backward, its gradients. */
static void exact_x_proj(struct direction *direction, bool backward)
{
    const struct block_dims *dims = direction->dims;
    struct scan *scan = &direction->scan;
    const struct tensor *const values[3] = {&scan->delta, &scan->b, &scan->c};
    const struct tensor *const grads[3] = {&scan->grad_delta, &scan->grad_b, &scan->grad_c};
    const ptrdiff_t columns = dims->rank + 2 * dims->states;
    for (ptrdiff_t i = 0; i < dims->batch * columns * dims->channels; i++) {
        const ptrdiff_t item = i / (columns * dims->channels);
        const ptrdiff_t element = i % (columns * dims->channels);
        const ptrdiff_t column = element / dims->channels;
        const ptrdiff_t start = (item * dims->channels + element % dims->channels) * dims->length;
        const double weight = direction->weight[X_PROJ].exact[element];
        double *value = projected(direction, values, item, column);
        const double *grad = projected(direction, grads, item, column);
        for (ptrdiff_t t = 0; t < dims->length; t++) {
            if (backward) {
                scan->grad_u.exact[start + t] += weight * grad[t];
                direction->grad[X_PROJ].exact[element] += scan->u.exact[start + t] * grad[t];
            } else {
                value[t] += weight * scan->u.exact[start + t];
            }
        }
    }
}

/* Both passes of one direction; adds to y (rows, channels) and grad_xz (rows, 2 channels). */
static void exact_direction(struct block *block, ptrdiff_t index, const double *xz,
                            const double *grad_y, double *y, double *grad_xz)
{
    const ptrdiff_t length = block->dims.length;
    const ptrdiff_t channels = block->dims.channels;
    struct direction direction = make_direction(block, index);
    struct scan *scan = &direction.scan;
    clear_exact(&scan->delta);
    clear_exact(&scan->b);
    clear_exact(&scan->c);
    exact_conv(&direction, block->given[direction_start(index) + CONV_BIAS], xz, grad_y);
    exact_x_proj(&direction, false);
    exact_scan(scan);
    exact_x_proj(&direction, true);
    exact_conv_backward(&direction, xz, grad_xz);
    for (ptrdiff_t i = 0; i < block->dims.batch * channels * length; i++) {
        const ptrdiff_t row = row_of(&direction, i / (length * channels), i % length);
        y[row * channels + i / length % channels] += scan->out.exact[i];
    }
    copy_exact(&direction.grad[DT_PROJ], &scan->grad_w);
    copy_exact(&direction.grad[DT_BIAS], &scan->grad_bias);
    copy_exact(&direction.grad[SKIP], &scan->grad_d);
    for (size_t i = 0; i < count_elements(&scan->a); i++) {
        direction.grad[A_LOG].exact[log_index(&block->dims, i)] +=
            scan->grad_a.exact[i] * scan->a.exact[i];
    }
    free(direction.sums);
    free_scan(scan);
}

/* All directions: y (rows, channels), and grad_y -> grad_xz, the gradient of in_proj's output. */
static void exact_directions(struct block *block, const double *xz, double *grad_y, double *y,
                             double *grad_xz)
{
    const struct block_dims *dims = &block->dims;
    const ptrdiff_t count = dims->batch * dims->length * dims->channels;
    for (ptrdiff_t i = 0; i < count; i++)
        grad_y[i] /= (double)dims->directions;
    for (ptrdiff_t i = 0; i < dims->directions; i++)
        exact_direction(block, i, xz, grad_y, y, grad_xz);
    for (ptrdiff_t i = 0; i < count; i++)
        y[i] /= (double)dims->directions;
}

void exact_block(struct block *block)
{
    const struct block_dims *dims = &block->dims;
    const ptrdiff_t rows = dims->batch * dims->length;
    const ptrdiff_t width = dims->d_model;
    const ptrdiff_t inner = dims->channels;
    const double *in_proj = block->weight[IN_PROJ].exact;
    const double *out_proj = block->weight[OUT_PROJ].exact;
    const double *grad_out = block->grad_out.exact;
    double *hidden = zeros(rows * width);
    double *grad_hidden = zeros(rows * width);
    double *xz = zeros(rows * 2 * inner);
    double *grad_xz = zeros(rows * 2 * inner);
    double *y = zeros(rows * inner);
    double *grad_y = zeros(rows * inner);
    clear_exact(&block->out);
    for (int i = 0; i < ALL_WEIGHTS; i++)
        clear_exact(&block->grad[i]);
    exact_norm(block, hidden);
    multiply(hidden, in_proj, xz, rows, width, 2 * inner);
    multiply_input_grad(grad_out, out_proj, grad_y, rows, inner, width);
    exact_directions(block, xz, grad_y, y, grad_xz);
    if (block->given[NORM])
        memcpy(block->out.exact, block->input.exact, (size_t)(rows * width) * sizeof(double));
    multiply(y, out_proj, block->out.exact, rows, inner, width);
    multiply_weight_grad(grad_out, y, block->grad[OUT_PROJ].exact, rows, inner, width);
    multiply_input_grad(grad_xz, in_proj, grad_hidden, rows, width, 2 * inner);
    multiply_weight_grad(grad_xz, hidden, block->grad[IN_PROJ].exact, rows, width, 2 * inner);
    exact_norm_backward(block, grad_hidden);
    double *memory[] = {hidden, grad_hidden, xz, grad_xz, y, grad_y};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        free(memory[i]);
}
