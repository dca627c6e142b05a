/* The training kernels on every instruction set of this machine against the plain definition in
 * double precision: random shapes, layouts and options. Under ASan each buffer is exactly as large
 * as it may be. */
#include "causal_conv.h"
#include "selective_scan.h"

#include "check.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Relative L2 distance, tensor by tensor. */
static const double TOLERANCE[2] = {1e-5, 1e-12};

static uint64_t random_state = 1;

static double uniform(double low, double high)
{
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return low + (high - low) * (double)(random_state >> 11) / 9007199254740992.0;
}

static ptrdiff_t between(ptrdiff_t low, ptrdiff_t high)
{
    return low + (ptrdiff_t)uniform(0, (double)(high - low + 1));
}

static double *doubles(ptrdiff_t count, double low, double high)
{
    double *values = malloc((size_t)count * sizeof *values);
    for (ptrdiff_t i = 0; i < count; i++) {
        values[i] = uniform(low, high);
    }
    return values;
}

/* A dense (batch, channels, length) tensor of doubles, and its copy as the kernel sees it: of its
 * type, channels or time innermost, in either direction of time. */
typedef struct Tensor {
    ptrdiff_t shape[3];
    double *exact;
    void *memory;
    ScanMutableTensor view;
    int is_double;
} Tensor;

static double get(const Tensor *tensor, ptrdiff_t b, ptrdiff_t c, ptrdiff_t t)
{
    const ptrdiff_t *stride = tensor->view.stride;
    const ptrdiff_t i = b * stride[0] + c * stride[1] + t * stride[2];
    return tensor->is_double ? ((double *)tensor->view.data)[i] : ((float *)tensor->view.data)[i];
}

static Tensor make_tensor(ptrdiff_t batch, ptrdiff_t channels, ptrdiff_t length, int is_double,
                          int channels_inner, int reversed, double low, double high)
{
    const ptrdiff_t count = batch * channels * length;
    Tensor tensor = {{batch, channels, length}, doubles(count, low, high), NULL, {NULL, {0}}, 0};
    const size_t size = is_double ? sizeof(double) : sizeof(float);
    ptrdiff_t *stride = tensor.view.stride;
    tensor.is_double = is_double;
    tensor.memory = malloc((size_t)count * size);
    stride[0] = channels * length;
    stride[1] = channels_inner ? 1 : length;
    stride[2] = channels_inner ? channels : 1;
    tensor.view.data = tensor.memory;
    if (reversed) {
        tensor.view.data = (char *)tensor.memory + (length - 1) * stride[2] * (ptrdiff_t)size;
        stride[2] = -stride[2];
    }
    for (ptrdiff_t i = 0; i < count; i++) {
        const ptrdiff_t b = i / (channels * length);
        const ptrdiff_t c = i / length % channels;
        const ptrdiff_t at = b * stride[0] + c * stride[1] + i % length * stride[2];
        if (is_double) {
            ((double *)tensor.view.data)[at] = tensor.exact[i];
        } else {
            ((float *)tensor.view.data)[at] = (float)tensor.exact[i];
            tensor.exact[i] = (float)tensor.exact[i];
        }
    }
    return tensor;
}

static ScanTensor input(const Tensor *tensor)
{
    const ScanTensor view = {
        tensor->view.data,
        {tensor->view.stride[0], tensor->view.stride[1], tensor->view.stride[2]}};
    return view;
}

static void free_tensor(Tensor *tensor)
{
    free(tensor->exact);
    free(tensor->memory);
}

/* A parameter vector or matrix: (1, count, 1). */
static Tensor make_parameter(ptrdiff_t count, int is_double, double low, double high)
{
    return make_tensor(1, count, 1, is_double, 0, 0, low, high);
}

static void check_tensor(const char *what, const char *name, const Tensor *got)
{
    double error = 0;
    double norm = 0;
    for (ptrdiff_t b = 0, i = 0; b < got->shape[0]; b++) {
        for (ptrdiff_t c = 0; c < got->shape[1]; c++) {
            for (ptrdiff_t t = 0; t < got->shape[2]; t++, i++) {
                const double difference = get(got, b, c, t) - got->exact[i];
                error += difference * difference;
                norm += got->exact[i] * got->exact[i];
            }
        }
    }
    const double relative = sqrt(error) / (sqrt(norm) + 1e-30);
    CHECK(relative <= TOLERANCE[got->is_double], "%s %s: relative distance %.3g", what, name,
          relative);
}

/* One scan: its inputs, and the gradients and the output with their exact values. */
typedef struct Scan {
    ScanDims dims;
    Tensor u, delta, b, c, z, a, d, bias, w;
    Tensor out, grad_out;
    Tensor grad_u, grad_delta, grad_b, grad_c, grad_z, grad_a, grad_d, grad_bias, grad_w;
    int has_z, has_d, has_bias;
} Scan;

static double silu(double z)
{
    return z / (1 + exp(-z));
}

/* The definition: one sequence of one channel at a time, every state kept. */
static void exact_scan(Scan *scan)
{
    const ptrdiff_t length = scan->dims.length;
    const ptrdiff_t states = scan->dims.states;
    const ptrdiff_t channels = scan->dims.channels;
    const ptrdiff_t rank = scan->dims.rank;
    double *h = malloc((size_t)((length + 1) * states) * sizeof *h);
    double *delta = malloc((size_t)length * sizeof *delta);
    double *carry = malloc((size_t)states * sizeof *carry);
    Tensor *cleared[] = {&scan->grad_b,    &scan->grad_c, &scan->grad_a,     &scan->grad_d,
                         &scan->grad_bias, &scan->grad_w, &scan->grad_delta, &scan->out};
    for (size_t i = 0; i < sizeof cleared / sizeof *cleared; i++) {
        const ptrdiff_t *shape = cleared[i]->shape;
        memset(cleared[i]->exact, 0, (size_t)(shape[0] * shape[1] * shape[2]) * sizeof(double));
    }
    for (ptrdiff_t row = 0; row < scan->dims.batch * channels; row++) {
        const ptrdiff_t item = row / channels;
        const ptrdiff_t d = row % channels;
        const double skip = scan->has_d ? scan->d.exact[d] : 0;
        const double bias = scan->has_bias ? scan->bias.exact[d] : 0;
        double *slopes = malloc((size_t)length * sizeof *slopes);
        memset(h, 0, (size_t)states * sizeof *h);
        for (ptrdiff_t t = 0; t < length; t++) {
            double raw = bias;
            if (rank == 0) {
                raw += scan->delta.exact[row * length + t];
            }
            for (ptrdiff_t r = 0; r < rank; r++) {
                raw +=
                    scan->w.exact[d * rank + r] * scan->delta.exact[(item * rank + r) * length + t];
            }
            const int soft = scan->dims.delta_softplus != 0;
            delta[t] = soft ? log1p(exp(-fabs(raw))) + fmax(raw, 0) : raw;
            slopes[t] = soft ? 1 / (1 + exp(-raw)) : 1;
            const double u = scan->u.exact[row * length + t];
            double y = skip * u;
            for (ptrdiff_t n = 0; n < states; n++) {
                const ptrdiff_t at = (item * states + n) * length + t;
                h[(t + 1) * states + n] =
                    exp(delta[t] * scan->a.exact[d * states + n]) * h[t * states + n] +
                    delta[t] * scan->b.exact[at] * u;
                y += scan->c.exact[at] * h[(t + 1) * states + n];
            }
            const double gate = scan->has_z ? silu(scan->z.exact[row * length + t]) : 1;
            scan->out.exact[row * length + t] = y * gate;
        }
        memset(carry, 0, (size_t)states * sizeof *carry);
        for (ptrdiff_t t = length - 1; t >= 0; t--) {
            const ptrdiff_t i = row * length + t;
            const double u = scan->u.exact[i];
            double grad_y = scan->grad_out.exact[i];
            if (scan->has_z) {
                const double z = scan->z.exact[i];
                const double sigmoid = 1 / (1 + exp(-z));
                double y = skip * u;
                for (ptrdiff_t n = 0; n < states; n++) {
                    y += scan->c.exact[(item * states + n) * length + t] * h[(t + 1) * states + n];
                }
                scan->grad_z.exact[i] = grad_y * y * sigmoid * (1 + z * (1 - sigmoid));
                grad_y *= silu(z);
            }
            double grad_delta = 0;
            double grad_u = skip * grad_y;
            scan->grad_d.exact[d] += grad_y * u;
            for (ptrdiff_t n = 0; n < states; n++) {
                const ptrdiff_t at = (item * states + n) * length + t;
                const double a = scan->a.exact[d * states + n];
                const double decay = exp(delta[t] * a);
                const double grad_h = carry[n] + grad_y * scan->c.exact[at];
                const double grad_exponent = grad_h * decay * h[t * states + n];
                scan->grad_c.exact[at] += grad_y * h[(t + 1) * states + n];
                scan->grad_b.exact[at] += grad_h * delta[t] * u;
                scan->grad_a.exact[d * states + n] += grad_exponent * delta[t];
                grad_delta += grad_exponent * a + grad_h * scan->b.exact[at] * u;
                grad_u += grad_h * scan->b.exact[at] * delta[t];
                carry[n] = grad_h * decay;
            }
            grad_delta *= slopes[t];
            scan->grad_u.exact[i] = grad_u;
            scan->grad_bias.exact[d] += grad_delta;
            if (rank == 0) {
                scan->grad_delta.exact[i] = grad_delta;
            }
            for (ptrdiff_t r = 0; r < rank; r++) {
                const ptrdiff_t at = (item * rank + r) * length + t;
                scan->grad_delta.exact[at] += grad_delta * scan->w.exact[d * rank + r];
                scan->grad_w.exact[d * rank + r] += grad_delta * scan->delta.exact[at];
            }
        }
        free(slopes);
    }
    free(h);
    free(delta);
    free(carry);
}

static Scan random_scan(ScanType type, ScanIsa isa, int tied)
{
    Scan scan;
    const ptrdiff_t batch = between(1, 4) == 4 ? between(60, 70) : between(1, 3);
    const ptrdiff_t channels = batch > 10 ? between(1, 20) : between(1, 70);
    const ptrdiff_t length = between(1, 40);
    const ptrdiff_t states = between(1, 20);
    const ptrdiff_t rank = between(0, 1) * between(1, 5);
    const int dbl = type == SCAN_FLOAT64;
    const int inner = between(0, 1) != 0;
    const int back = between(0, 1) != 0;
    const ScanDims dims = {batch,         channels,      length, states, rank,
                           between(1, 3), between(0, 1), type,   isa};
    scan.dims = dims;
    scan.has_z = between(0, 1) != 0;
    scan.has_d = between(0, 1) != 0;
    scan.has_bias = between(0, 1) != 0;
#define SEQUENCE(c, low, high) make_tensor(batch, c, length, dbl, inner, back, low, high)
    const double low = dims.delta_softplus ? -4 : 0.01; /* a step size is positive */
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
    scan.a = make_parameter(channels * states, dbl, -4, -0.1);
    scan.d = make_parameter(channels, dbl, -1, 1);
    scan.bias = make_parameter(channels, dbl, 0, 1);
    scan.w = make_parameter(channels * rank + 1, dbl, 0.01, 1);
    scan.grad_a = make_parameter(channels * states, dbl, 7, 8);
    scan.grad_d = make_parameter(channels, dbl, 7, 8);
    scan.grad_bias = make_parameter(channels, dbl, 7, 8);
    scan.grad_w = make_parameter(channels * rank + 1, dbl, 7, 8);
    for (ptrdiff_t i = 0; tied && i < channels * states; i++) {
        const ptrdiff_t first = i / states * states;
        if (dbl) {
            double *a = scan.a.memory;
            a[i] = a[first] * (double)(i - first + 1);
            scan.a.exact[i] = a[i];
        } else {
            float *a = scan.a.memory;
            a[i] = a[first] * (float)(i - first + 1);
            scan.a.exact[i] = a[i];
        }
    }
    return scan;
}

static void free_scan(Scan *scan)
{
    Tensor *tensors[] = {&scan->u,          &scan->delta,  &scan->b,         &scan->c,
                         &scan->z,          &scan->a,      &scan->d,         &scan->bias,
                         &scan->w,          &scan->out,    &scan->grad_out,  &scan->grad_u,
                         &scan->grad_delta, &scan->grad_b, &scan->grad_c,    &scan->grad_z,
                         &scan->grad_a,     &scan->grad_d, &scan->grad_bias, &scan->grad_w};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        free_tensor(tensors[i]);
    }
}

static void run_scan(Scan *scan)
{
    const ScanDims *dims = &scan->dims;
    const ScanTensor none = {NULL, {0, 0, 0}};
    const ScanMutableTensor nothing = {NULL, {0, 0, 0}};
    const ScanInputs inputs = {input(&scan->u),
                               input(&scan->delta),
                               input(&scan->b),
                               input(&scan->c),
                               scan->has_z ? input(&scan->z) : none,
                               scan->a.memory,
                               scan->has_d ? scan->d.memory : NULL,
                               scan->has_bias ? scan->bias.memory : NULL,
                               dims->rank > 0 ? scan->w.memory : NULL};
    const ScanGradients grads = {scan->grad_u.view,
                                 scan->grad_delta.view,
                                 scan->grad_b.view,
                                 scan->grad_c.view,
                                 scan->has_z ? scan->grad_z.view : nothing,
                                 scan->grad_a.memory,
                                 scan->has_d ? scan->grad_d.memory : NULL,
                                 scan->has_bias ? scan->grad_bias.memory : NULL,
                                 dims->rank > 0 ? scan->grad_w.memory : NULL};
    const ScanTensor grad_out = input(&scan->grad_out);
    void *checkpoints = malloc(selective_scan_checkpoint_bytes(dims) + 1);
    void *workspace = malloc(selective_scan_workspace_bytes(dims));
    ScanStatus status =
        selective_scan_forward(dims, &inputs, &scan->out.view, checkpoints, workspace);
    CHECK(status == SCAN_OK, "forward: status %d", status);
    free(workspace);
    workspace = malloc(selective_scan_workspace_bytes(dims));
    status = selective_scan_backward(dims, &inputs, &grad_out, checkpoints, &grads, workspace);
    CHECK(status == SCAN_OK, "backward: status %d", status);
    free(workspace);
    free(checkpoints);
}

static void check_scan(Scan *scan)
{
    const ScanDims *dims = &scan->dims;
    char what[160];
    snprintf(what, sizeof what,
             "scan isa %td type %td, %td x %td x %td, %td states, rank %td, softplus %td, z %d",
             dims->isa, dims->type, dims->batch, dims->channels, dims->length, dims->states,
             dims->rank, dims->delta_softplus, scan->has_z);
    scan->grad_w.shape[1] = dims->channels * dims->rank; /* one element more was made, for rank 0 */
    check_tensor(what, "out", &scan->out);
    check_tensor(what, "grad u", &scan->grad_u);
    check_tensor(what, "grad delta", &scan->grad_delta);
    check_tensor(what, "grad B", &scan->grad_b);
    check_tensor(what, "grad C", &scan->grad_c);
    check_tensor(what, "grad A", &scan->grad_a);
    if (scan->has_z) {
        check_tensor(what, "grad z", &scan->grad_z);
    }
    if (scan->has_d) {
        check_tensor(what, "grad D", &scan->grad_d);
    }
    if (scan->has_bias) {
        check_tensor(what, "grad bias", &scan->grad_bias);
    }
    check_tensor(what, "grad W", &scan->grad_w);
}

static void test_scans(ScanType type, ScanIsa isa)
{
    for (int i = 0; i < 60; i++) {
        Scan scan = random_scan(type, isa, i % 3 == 0);
        exact_scan(&scan);
        run_scan(&scan);
        check_scan(&scan);
        free_scan(&scan);
    }
}

static void exact_conv(const ConvDims *dims, const Tensor *x, const Tensor *weight,
                       const Tensor *bias, const Tensor *grad_out, Tensor *out, Tensor *grad_x,
                       Tensor *grad_weight, Tensor *grad_bias)
{
    const ptrdiff_t taps = dims->taps;
    memset(grad_x->exact, 0,
           (size_t)(dims->batch * dims->channels * dims->length) * sizeof(double));
    memset(grad_weight->exact, 0, (size_t)(dims->channels * taps) * sizeof(double));
    memset(grad_bias->exact, 0, (size_t)dims->channels * sizeof(double));
    for (ptrdiff_t i = 0; i < dims->batch * dims->channels * dims->length; i++) {
        const ptrdiff_t t = i % dims->length;
        const ptrdiff_t d = i / dims->length % dims->channels;
        double sum = bias == NULL ? 0 : bias->exact[d];
        for (ptrdiff_t k = 0; k < taps; k++) {
            const ptrdiff_t back = taps - 1 - k;
            sum += t >= back ? weight->exact[d * taps + k] * x->exact[i - back] : 0;
        }
        const double sigmoid = 1 / (1 + exp(-sum));
        const double grad = grad_out->exact[i] * sigmoid * (1 + sum * (1 - sigmoid));
        out->exact[i] = silu(sum);
        grad_bias->exact[d] += grad;
        for (ptrdiff_t k = 0; k < taps; k++) {
            const ptrdiff_t back = taps - 1 - k;
            if (t >= back) {
                grad_weight->exact[d * taps + k] += grad * x->exact[i - back];
                grad_x->exact[i - back] += grad * weight->exact[d * taps + k];
            }
        }
    }
}

static void test_conv(ScanType type, ScanIsa isa)
{
    const int dbl = type == SCAN_FLOAT64;
    const ptrdiff_t batch = between(1, 4) == 4 ? between(60, 70) : between(1, 3);
    const ptrdiff_t channels = between(1, 40);
    const ptrdiff_t length = between(1, 40);
    const int inner = between(0, 1) != 0;
    const int back = between(0, 1) != 0;
    const int has_bias = between(0, 1) != 0;
    const ConvDims dims = {batch, channels, length, between(1, 20), between(1, 3), type, isa};
    Tensor x = make_tensor(batch, channels, length, dbl, inner, back, -1, 1);
    Tensor out = make_tensor(batch, channels, length, dbl, inner, back, 7, 8);
    Tensor grad_out = make_tensor(batch, channels, length, dbl, !inner, back, -1, 1);
    Tensor grad_x = make_tensor(batch, channels, length, dbl, inner, back, 7, 8);
    Tensor weight = make_parameter(channels * dims.taps, dbl, -1, 1);
    Tensor bias = make_parameter(channels, dbl, -1, 1);
    Tensor grad_weight = make_parameter(channels * dims.taps, dbl, 7, 8);
    Tensor grad_bias = make_parameter(channels, dbl, 7, 8);
    const ConvInputs inputs = {input(&x), weight.memory, has_bias ? bias.memory : NULL};
    const ConvGradients grads = {grad_x.view, grad_weight.memory,
                                 has_bias ? grad_bias.memory : NULL};
    const ScanTensor grad = input(&grad_out);
    void *workspace = malloc(causal_conv_workspace_bytes(&dims));
    char what[120];
    snprintf(what, sizeof what, "conv isa %d type %d, %td x %td x %td, %td taps", (int)isa,
             (int)type, batch, channels, length, dims.taps);
    exact_conv(&dims, &x, &weight, has_bias ? &bias : NULL, &grad_out, &out, &grad_x, &grad_weight,
               &grad_bias);
    CHECK(causal_conv_forward(&dims, &inputs, &out.view, workspace) == SCAN_OK, "%s", what);
    CHECK(causal_conv_backward(&dims, &inputs, &grad, &grads, workspace) == SCAN_OK, "%s", what);
    check_tensor(what, "out", &out);
    check_tensor(what, "grad x", &grad_x);
    check_tensor(what, "grad weight", &grad_weight);
    if (has_bias) {
        check_tensor(what, "grad bias", &grad_bias);
    }
    Tensor *tensors[] = {&x, &out, &grad_out, &grad_x, &weight, &bias, &grad_weight, &grad_bias};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        free_tensor(tensors[i]);
    }
    free(workspace);
}

/* The same bits for any number of threads. */
static void test_threads(ScanIsa isa)
{
    for (int i = 0; i < 10; i++) {
        const uint64_t seed = random_state;
        Scan one = random_scan(SCAN_FLOAT32, isa, i % 2);
        random_state = seed;
        Scan many = random_scan(SCAN_FLOAT32, isa, i % 2);
        one.dims.threads = 1;
        many.dims.threads = 3;
        run_scan(&one);
        run_scan(&many);
        const Tensor *pairs[][2] = {
            {&one.out, &many.out},       {&one.grad_u, &many.grad_u},
            {&one.grad_b, &many.grad_b}, {&one.grad_c, &many.grad_c},
            {&one.grad_a, &many.grad_a}, {&one.grad_delta, &many.grad_delta}};
        for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
            const ptrdiff_t *shape = pairs[p][0]->shape;
            const size_t bytes = (size_t)(shape[0] * shape[1] * shape[2]) * sizeof(float);
            CHECK(memcmp(pairs[p][0]->memory, pairs[p][1]->memory, bytes) == 0,
                  "isa %d, tensor %zu differs between 1 and 3 threads", (int)isa, p);
        }
        free_scan(&one);
        free_scan(&many);
    }
}

static void test_refusals(void)
{
    Scan scan = random_scan(SCAN_FLOAT32, SCAN_ISA_SCALAR, 0);
    ScanDims dims = scan.dims;
    ScanInputs inputs;
    memset(&inputs, 0, sizeof inputs);
    ScanGradients grads;
    memset(&grads, 0, sizeof grads);
    const ScanTensor grad_out = {NULL, {0, 0, 0}};
    char memory[1];
    dims.length = 0;
    CHECK(selective_scan_workspace_bytes(&dims) == 0, "length 0");
    CHECK(selective_scan_checkpoint_bytes(&dims) == 0, "length 0");
    CHECK(selective_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_DIMS,
          "length 0");
    dims.length = 1;
    dims.isa = 99;
    CHECK(selective_scan_workspace_bytes(&dims) == 0, "isa 99");
    CHECK(selective_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_ISA,
          "isa 99");
    dims.isa = SCAN_ISA_SCALAR;
    dims.type = 7;
    CHECK(selective_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_ISA,
          "type 7");
    dims.type = SCAN_FLOAT32;
    CHECK(selective_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_NULL,
          "no inputs");
    CHECK(selective_scan_backward(&dims, &inputs, &grad_out, memory, &grads, memory) ==
              SCAN_ERROR_NULL,
          "no inputs");
    ConvDims conv = {1, 1, 1, 0, 1, SCAN_FLOAT32, SCAN_ISA_SCALAR};
    ConvInputs nothing;
    memset(&nothing, 0, sizeof nothing);
    CHECK(causal_conv_workspace_bytes(&conv) == 0, "no taps");
    CHECK(causal_conv_forward(&conv, &nothing, &scan.out.view, memory) == SCAN_ERROR_DIMS,
          "no taps");
    conv.taps = 1;
    CHECK(causal_conv_forward(&conv, &nothing, &scan.out.view, memory) == SCAN_ERROR_NULL,
          "no inputs");
    free_scan(&scan);
}

int main(void)
{
    for (ScanIsa isa = SCAN_ISA_SCALAR; isa <= SCAN_ISA_AVX512; isa++) {
        if (!scan_isa_works(isa)) {
            continue;
        }
        printf("instruction set %d\n", (int)isa);
        test_scans(SCAN_FLOAT32, isa);
        test_threads(isa);
        for (int i = 0; i < 40; i++) {
            test_conv(SCAN_FLOAT32, isa);
        }
    }
    CHECK(scan_isa_works(scan_best_isa()), "the best instruction set works");
    test_scans(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    for (int i = 0; i < 40; i++) {
        test_conv(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    }
    test_refusals();
    return check_summary();
}
