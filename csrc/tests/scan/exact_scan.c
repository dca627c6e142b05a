#include "exact_scan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

double silu(double x)
{
    return x * sigmoid(x);
}

double silu_slope(double x)
{
    return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
}

/* One channel of one item: all that the forward pass keeps for the backward pass. */
struct row {
    ptrdiff_t item, channel;
    double *h;     /* (length + 1, states), after each step; the first is 0 */
    double *y;     /* (length), before the gate */
    double *delta; /* (length) */
    double *slope; /* (length), d delta / d raw */
    double *carry; /* (states), the later steps' gradient of the state */
};

/* Element of a tensor (batch, rows, length). */
static double *at(const struct scan *scan, const struct tensor *tensor, ptrdiff_t item,
                  ptrdiff_t row, ptrdiff_t t)
{
    return tensor->exact + (item * tensor->shape[1] + row) * scan->dims.length + t;
}

static void step_size(const struct scan *scan, struct row *row, ptrdiff_t t)
{
    const ptrdiff_t d = row->channel;
    const ptrdiff_t rank = scan->dims.rank;
    double raw = scan->has_bias ? scan->bias.exact[d] : 0;
    if (rank == 0)
        raw += *at(scan, &scan->delta, row->item, d, t);
    for (ptrdiff_t r = 0; r < rank; r++)
        raw += scan->w.exact[d * rank + r] * *at(scan, &scan->delta, row->item, r, t);
    const bool soft = scan->dims.delta_softplus;
    row->delta[t] = soft ? log1p(exp(-fabs(raw))) + fmax(raw, 0) : raw;
    row->slope[t] = soft ? sigmoid(raw) : 1;
}

static void forward_row(struct scan *scan, struct row *row)
{
    const ptrdiff_t states = scan->dims.states;
    const ptrdiff_t d = row->channel;
    memset(row->h, 0, (size_t)states * sizeof *row->h);
    for (ptrdiff_t t = 0; t < scan->dims.length; t++) {
        step_size(scan, row, t);
        const double u = *at(scan, &scan->u, row->item, d, t);
        const double *before = row->h + t * states;
        double *h = row->h + (t + 1) * states;
        row->y[t] = scan->has_d ? scan->d.exact[d] * u : 0;
        for (ptrdiff_t n = 0; n < states; n++) {
            const double b = *at(scan, &scan->b, row->item, n, t);
            h[n] = exp(row->delta[t] * scan->a.exact[d * states + n]) * before[n] +
                   row->delta[t] * b * u;
            row->y[t] += *at(scan, &scan->c, row->item, n, t) * h[n];
        }
        const double gate = scan->has_z ? silu(*at(scan, &scan->z, row->item, d, t)) : 1;
        *at(scan, &scan->out, row->item, d, t) = row->y[t] * gate;
    }
}

/* Return the gradient of y. */
static double backward_gate(struct scan *scan, const struct row *row, ptrdiff_t t)
{
    const double grad = *at(scan, &scan->grad_out, row->item, row->channel, t);
    if (!scan->has_z)
        return grad;
    const double z = *at(scan, &scan->z, row->item, row->channel, t);
    *at(scan, &scan->grad_z, row->item, row->channel, t) = grad * row->y[t] * silu_slope(z);
    return grad * silu(z);
}

/* From the gradient of raw delta to those of the bias and of delta, or of W and dt. */
static void backward_step_size(struct scan *scan, const struct row *row, ptrdiff_t t, double grad)
{
    const ptrdiff_t rank = scan->dims.rank;
    const ptrdiff_t d = row->channel;
    scan->grad_bias.exact[d] += grad;
    if (rank == 0)
        *at(scan, &scan->grad_delta, row->item, d, t) = grad;
    for (ptrdiff_t r = 0; r < rank; r++) {
        *at(scan, &scan->grad_delta, row->item, r, t) += grad * scan->w.exact[d * rank + r];
        scan->grad_w.exact[d * rank + r] += grad * *at(scan, &scan->delta, row->item, r, t);
    }
}

static void backward_row(struct scan *scan, const struct row *row)
{
    const ptrdiff_t states = scan->dims.states;
    const ptrdiff_t d = row->channel;
    memset(row->carry, 0, (size_t)states * sizeof *row->carry);
    for (ptrdiff_t t = scan->dims.length - 1; t >= 0; t--) {
        const double u = *at(scan, &scan->u, row->item, d, t);
        const double delta = row->delta[t];
        const double grad_y = backward_gate(scan, row, t);
        double grad_u = scan->has_d ? scan->d.exact[d] * grad_y : 0;
        double grad_delta = 0;
        scan->grad_d.exact[d] += grad_y * u;
        for (ptrdiff_t n = 0; n < states; n++) {
            const double a = scan->a.exact[d * states + n];
            const double b = *at(scan, &scan->b, row->item, n, t);
            const double decay = exp(delta * a);
            const double grad_h = row->carry[n] + grad_y * *at(scan, &scan->c, row->item, n, t);
            const double grad_exponent = grad_h * decay * row->h[t * states + n];
            *at(scan, &scan->grad_c, row->item, n, t) += grad_y * row->h[(t + 1) * states + n];
            *at(scan, &scan->grad_b, row->item, n, t) += grad_h * delta * u;
            scan->grad_a.exact[d * states + n] += grad_exponent * delta;
            grad_delta += grad_exponent * a + grad_h * b * u;
            grad_u += grad_h * b * delta;
            row->carry[n] = grad_h * decay;
        }
        *at(scan, &scan->grad_u, row->item, d, t) = grad_u;
        backward_step_size(scan, row, t, grad_delta * row->slope[t]);
    }
}

static double *doubles(ptrdiff_t count)
{
    return malloc((size_t)count * sizeof(double));
}

void exact_scan(struct scan *scan)
{
    const ptrdiff_t length = scan->dims.length;
    const ptrdiff_t states = scan->dims.states;
    struct tensor *sums[] = {&scan->grad_b, &scan->grad_c,    &scan->grad_a,    &scan->grad_d,
                             &scan->grad_w, &scan->grad_bias, &scan->grad_delta};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        clear_exact(sums[i]);
    struct row row = {0,
                      0,
                      doubles((length + 1) * states),
                      doubles(length),
                      doubles(length),
                      doubles(length),
                      doubles(states)};
    for (row.item = 0; row.item < scan->dims.batch; row.item++) {
        for (row.channel = 0; row.channel < scan->dims.channels; row.channel++) {
            forward_row(scan, &row);
            backward_row(scan, &row);
        }
    }
    double *memory[] = {row.h, row.y, row.delta, row.slope, row.carry};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        free(memory[i]);
}

struct scan make_scan(const struct scan_dims *dims, bool channels_inner, bool reversed)
{
    const ptrdiff_t channels = dims->channels;
    const ptrdiff_t states = dims->states;
    const ptrdiff_t rank = dims->rank;
    const bool is_double = dims->type == SCAN_FLOAT64;
    const double low = dims->delta_softplus ? -4 : 0.01; /* step sizes are positive */
    struct scan scan = {.dims = *dims, .has_z = true, .has_d = true, .has_bias = true};
#define SEQUENCE(rows, from, to)                                                                   \
    make_tensor(dims->batch, rows, dims->length, is_double, channels_inner, reversed, from, to)
    scan.u = SEQUENCE(channels, -1, 1);
    scan.delta = SEQUENCE(rank > 0 ? rank : channels, low, 1);
    scan.b = SEQUENCE(states, -1, 1);
    scan.c = SEQUENCE(states, -1, 1);
    scan.z = SEQUENCE(channels, -3, 3);
    scan.out = SEQUENCE(channels, 7, 8);
    scan.grad_out = SEQUENCE(channels, -1, 1);
    scan.grad_u = SEQUENCE(channels, 7, 8);
    scan.grad_delta = SEQUENCE(rank > 0 ? rank : channels, 7, 8);
    scan.grad_b = SEQUENCE(states, 7, 8);
    scan.grad_c = SEQUENCE(states, 7, 8);
    scan.grad_z = SEQUENCE(channels, 7, 8);
#undef SEQUENCE
    scan.a = make_parameter(channels * states, is_double, -4, -0.1);
    scan.d = make_parameter(channels, is_double, -1, 1);
    scan.bias = make_parameter(channels, is_double, 0, 1);
    scan.w = make_parameter(channels * rank, is_double, 0.01, 1);
    scan.grad_a = make_parameter(channels * states, is_double, 7, 8);
    scan.grad_d = make_parameter(channels, is_double, 7, 8);
    scan.grad_bias = make_parameter(channels, is_double, 7, 8);
    scan.grad_w = make_parameter(channels * rank, is_double, 7, 8);
    return scan;
}

void tie_states(struct tensor *a, ptrdiff_t states)
{
    for (ptrdiff_t i = 0; i < (ptrdiff_t)count_elements(a); i++)
        set_element(a, i, a->exact[i / states * states] * (double)(i % states + 1));
}

void free_scan(struct scan *scan)
{
    struct tensor *tensors[] = {&scan->u,          &scan->delta,  &scan->b,         &scan->c,
                                &scan->z,          &scan->a,      &scan->d,         &scan->bias,
                                &scan->w,          &scan->out,    &scan->grad_out,  &scan->grad_u,
                                &scan->grad_delta, &scan->grad_b, &scan->grad_c,    &scan->grad_z,
                                &scan->grad_a,     &scan->grad_d, &scan->grad_bias, &scan->grad_w};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        free_tensor(tensors[i]);
}
