/* The training kernels on every instruction set of this machine against the plain definition in
 * double precision: random shapes, layouts and options. Under ASan each buffer is exactly as large
 * as it may be. */
#define _GNU_SOURCE
#include "check.h"
#include "exact_scan.h"
#include "float_mode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Most large batches are short: the chunks of a long sequence are worked on item by item. */
static struct scan random_scan(enum scan_type type, enum scan_isa isa, bool tied)
{
    const ptrdiff_t batch = between(1, 4) == 4 ? between(60, 70) : between(1, 3);
    const struct scan_dims dims = {.batch = batch,
                                   .channels = batch > 10 ? between(1, 20) : between(1, 70),
                                   .length = between(1, batch > 10 && between(1, 8) > 1 ? 35 : 140),
                                   .states = between(1, 20),
                                   .rank = between(0, 1) * between(1, 5),
                                   .threads = between(1, 3),
                                   .delta_softplus = coin(),
                                   .type = type,
                                   .isa = isa};
    struct scan scan = make_scan(&dims, coin(), coin());
    scan.has_z = coin();
    scan.has_d = coin();
    scan.has_bias = coin();
    if (tied)
        tie_states(&scan.a, dims.states);
    return scan;
}

static void check_tensor(const char *what, const char *name, const struct tensor *got)
{
    const double distance = relative_distance(got);
    CHECK(distance <= tolerance(got), "%s %s: relative distance %.3g", what, name, distance);
}

static struct scan_inputs inputs_of(const struct scan *scan)
{
    const struct scan_tensor none = {NULL, {0, 0, 0}};
    return (struct scan_inputs){input(&scan->u),
                                input(&scan->delta),
                                input(&scan->b),
                                input(&scan->c),
                                scan->has_z ? input(&scan->z) : none,
                                scan->a.memory,
                                scan->has_d ? scan->d.memory : NULL,
                                scan->has_bias ? scan->bias.memory : NULL,
                                scan->dims.rank > 0 ? scan->w.memory : NULL};
}

static struct scan_gradients gradients_of(const struct scan *scan)
{
    const struct scan_mutable_tensor nothing = {NULL, {0, 0, 0}};
    return (struct scan_gradients){scan->grad_u.view,
                                   scan->grad_delta.view,
                                   scan->grad_b.view,
                                   scan->grad_c.view,
                                   scan->has_z ? scan->grad_z.view : nothing,
                                   scan->grad_a.memory,
                                   scan->has_d ? scan->grad_d.memory : NULL,
                                   scan->has_bias ? scan->grad_bias.memory : NULL,
                                   scan->dims.rank > 0 ? scan->grad_w.memory : NULL};
}

static void *checkpoints_of(const struct scan *scan)
{
    const size_t bytes = mamba_scan_checkpoint_bytes(&scan->dims);
    return nan_memory(bytes > 0 ? bytes : 1);
}

static void run_forward(struct scan *scan, void *checkpoints)
{
    const struct scan_inputs inputs = inputs_of(scan);
    void *workspace = nan_memory(mamba_scan_workspace_bytes(&scan->dims));
    const enum scan_status status =
        mamba_scan_forward(&scan->dims, &inputs, &scan->out.view, checkpoints, workspace);
    CHECK(status == SCAN_OK, "forward: status %d", status);
    free(workspace);
}

static void run_backward(struct scan *scan, const void *checkpoints)
{
    const struct scan_inputs inputs = inputs_of(scan);
    const struct scan_gradients grads = gradients_of(scan);
    const struct scan_tensor grad_out = input(&scan->grad_out);
    void *workspace = nan_memory(mamba_scan_workspace_bytes(&scan->dims));
    const enum scan_status status =
        mamba_scan_backward(&scan->dims, &inputs, &grad_out, checkpoints, &grads, workspace);
    CHECK(status == SCAN_OK, "backward: status %d", status);
    free(workspace);
}

static void run_scan(struct scan *scan)
{
    void *checkpoints = checkpoints_of(scan);
    run_forward(scan, checkpoints);
    run_backward(scan, checkpoints);
    free(checkpoints);
}

static void check_scan(struct scan *scan)
{
    const struct scan_dims *dims = &scan->dims;
    char what[160];
    snprintf(what, sizeof what,
             "scan isa %d type %d, %td x %td x %td, %td states, rank %td, softplus %d, z %d",
             dims->isa, dims->type, dims->batch, dims->channels, dims->length, dims->states,
             dims->rank, dims->delta_softplus, scan->has_z);
    check_tensor(what, "out", &scan->out);
    check_tensor(what, "grad u", &scan->grad_u);
    check_tensor(what, "grad delta", &scan->grad_delta);
    check_tensor(what, "grad B", &scan->grad_b);
    check_tensor(what, "grad C", &scan->grad_c);
    check_tensor(what, "grad A", &scan->grad_a);
    if (scan->has_z)
        check_tensor(what, "grad z", &scan->grad_z);
    if (scan->has_d)
        check_tensor(what, "grad D", &scan->grad_d);
    if (scan->has_bias)
        check_tensor(what, "grad bias", &scan->grad_bias);
    check_tensor(what, "grad W", &scan->grad_w);
}

static void test_scans(enum scan_type type, enum scan_isa isa)
{
    const int scans = only_a_sample() ? 30 : 60;
    for (int i = 0; i < scans; i++) {
        struct scan scan = random_scan(type, isa, i % 3 == 0);
        exact_scan(&scan);
        run_scan(&scan);
        check_scan(&scan);
        free_scan(&scan);
    }
}

static void check_same_bits(const struct scan *one, const struct scan *other, const char *what)
{
    const struct tensor *pairs[][2] = {
        {&one->out, &other->out},       {&one->grad_u, &other->grad_u},
        {&one->grad_b, &other->grad_b}, {&one->grad_c, &other->grad_c},
        {&one->grad_a, &other->grad_a}, {&one->grad_delta, &other->grad_delta}};
    for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
        CHECK(memcmp(pairs[p][0]->memory, pairs[p][1]->memory, count_bytes(pairs[p][0])) == 0,
              "isa %d, tensor %zu differs %s", (int)one->dims.isa, p, what);
    }
}

/* Results have the same bits for every number of threads. */
static void test_threads(enum scan_isa isa)
{
    for (int i = 0; i < 10; i++) {
        const uint64_t seed = random_state;
        struct scan one = random_scan(SCAN_FLOAT32, isa, i % 2);
        random_state = seed;
        struct scan many = random_scan(SCAN_FLOAT32, isa, i % 2);
        one.dims.threads = 1;
        many.dims.threads = 3;
        run_scan(&one);
        run_scan(&many);
        check_same_bits(&one, &many, "between 1 and 3 threads");
        free_scan(&one);
        free_scan(&many);
    }
}

/* Results have the same bits in every floating-point mode of the caller. */
static void test_caller_modes(enum scan_isa isa)
{
    const uint64_t seed = random_state;
    for (int i = 0; i < 2 * (CALLER_MODES - 1); i++) {
        struct scan usual, other;
        struct scan *const scans[] = {&usual, &other};
        for (int j = 0; j < 2; j++) {
            random_state = seed;
            *scans[j] = random_scan(SCAN_FLOAT32, isa, i % 2);
            set_caller_mode(j * (1 + i / 2));
            run_scan(scans[j]);
            set_caller_mode(USUAL_MODE);
        }
        check_same_bits(&usual, &other, "by the caller's floating-point mode");
        free_scan(&usual);
        free_scan(&other);
    }
}

static void test_mode(enum scan_isa isa)
{
    struct scan scan = random_scan(SCAN_FLOAT32, isa, false);
    scan.dims.threads = 3;
    void *checkpoints = checkpoints_of(&scan);
    CHECK_MODE_KEPT(run_forward(&scan, checkpoints), "forward pass", isa);
    CHECK_MODE_KEPT(run_backward(&scan, checkpoints), "backward pass", isa);
    free(checkpoints);
    free_scan(&scan);
}

/* Two steps of 4 states that grow by exp(growth) in the second step; if tied, only the last does.
 */
static struct scan growing_scan(enum scan_isa isa, float growth, bool tied)
{
    const struct scan_dims dims = {.batch = 1,
                                   .channels = 1,
                                   .length = 2,
                                   .states = 4,
                                   .threads = 1,
                                   .type = SCAN_FLOAT32,
                                   .isa = isa};
    struct scan scan = make_scan(&dims, false, false);
    scan.has_z = scan.has_d = scan.has_bias = false;
    for (ptrdiff_t n = 0; n < dims.states; n++)
        set_element(&scan.a, n, tied ? -0.25 * (double)(n + 1) : -1);
    set_element(&scan.u, 0, 1e-30);
    for (ptrdiff_t t = 0; t < dims.length; t++)
        set_element(&scan.delta, t, -growth);
    return scan;
}

/* A step size below 0 lets the state grow: by the right factor below 2^127.4, and by none that is
 * finite and wrong above the largest float. */
static void test_growth(enum scan_isa isa)
{
    for (int tied = 0; tied < 2; tied++) {
        const float growths[] = {88.25F, 88.75F, 100};
        for (int i = 0; i < 3; i++) {
            struct scan scan = growing_scan(isa, growths[i], tied);
            exact_scan(&scan);
            run_scan(&scan);
            if (i == 0)
                check_tensor("growth", "out", &scan.out);
            else
                CHECK(!isfinite(((float *)scan.out.memory)[1]),
                      "isa %d, tied %d: exp(%g) is finite", (int)isa, tied, (double)growths[i]);
            free_scan(&scan);
        }
    }
}

/* A scan of which each tensor is given, with a W or without. */
static struct scan whole_scan(ptrdiff_t rank)
{
    const struct scan_dims dims = {.batch = 2,
                                   .channels = 3,
                                   .length = 4,
                                   .states = 2,
                                   .rank = rank,
                                   .threads = 1,
                                   .type = SCAN_FLOAT32,
                                   .isa = SCAN_ISA_SCALAR};
    struct scan scan = make_scan(&dims, false, false);
    scan.has_z = scan.has_d = scan.has_bias = true;
    return scan;
}

/* Both passes return `wanted`, and both sizes are 0. Nothing is read or written. */
static void check_dims_refused(const struct scan_dims *dims, enum scan_status wanted,
                               const char *what)
{
    struct scan scan = whole_scan(2);
    const struct scan_inputs inputs = inputs_of(&scan);
    const struct scan_gradients grads = gradients_of(&scan);
    const struct scan_tensor grad_out = input(&scan.grad_out);
    char memory[1];
    CHECK(mamba_scan_workspace_bytes(dims) == 0, "%s", what);
    CHECK(mamba_scan_checkpoint_bytes(dims) == 0, "%s", what);
    CHECK(mamba_scan_forward(dims, &inputs, &scan.out.view, memory, memory) == wanted, "%s", what);
    CHECK(mamba_scan_backward(dims, &inputs, &grad_out, memory, &grads, memory) == wanted, "%s",
          what);
    free_scan(&scan);
}

static void test_refused_dims(void)
{
    struct scan scan = whole_scan(2);
    struct scan_dims dims = scan.dims;
    ptrdiff_t *const sizes[] = {&dims.batch,  &dims.channels, &dims.length,
                                &dims.states, &dims.threads,  &dims.rank};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (ptrdiff_t bad = -1; bad <= (sizes[i] == &dims.rank ? -1 : 0); bad++) {
            const ptrdiff_t good = *sizes[i];
            *sizes[i] = bad;
            char what[40];
            snprintf(what, sizeof what, "size %zu is %td", i, bad);
            check_dims_refused(&dims, SCAN_ERROR_DIMS, what);
            *sizes[i] = good;
        }
    }
    dims.isa = 99;
    check_dims_refused(&dims, SCAN_ERROR_ISA, "isa 99");
    dims = scan.dims;
    dims.type = 7;
    check_dims_refused(&dims, SCAN_ERROR_ISA, "type 7");
    free_scan(&scan);
}

/* Both passes refuse these inputs. */
static void check_inputs_refused(const struct scan *scan, const struct scan_inputs *inputs,
                                 const char *what, int i)
{
    const struct scan_gradients grads = gradients_of(scan);
    const struct scan_tensor grad_out = input(&scan->grad_out);
    char memory[1];
    CHECK(mamba_scan_forward(&scan->dims, inputs, &scan->out.view, memory, memory) ==
              SCAN_ERROR_NULL,
          "%s %d", what, i);
    CHECK(mamba_scan_backward(&scan->dims, inputs, &grad_out, memory, &grads, memory) ==
              SCAN_ERROR_NULL,
          "%s %d", what, i);
}

/* Leave out each required input in turn. */
static void test_missing_inputs(void)
{
    struct scan scan = whole_scan(2);
    struct scan_inputs inputs = inputs_of(&scan);
    const void **const required[] = {&inputs.u.data, &inputs.delta.data, &inputs.B.data,
                                     &inputs.C.data, &inputs.A,          &inputs.W};
    for (int i = 0; i < 6; i++) {
        const void *const given = *required[i];
        *required[i] = NULL;
        check_inputs_refused(&scan, &inputs, "no input", i);
        *required[i] = given;
    }
    struct scan without = whole_scan(0);
    struct scan_inputs too_many = inputs_of(&without);
    too_many.W = scan.w.memory;
    check_inputs_refused(&without, &too_many, "W for rank", 0);
    free_scan(&without);
    free_scan(&scan);
}

/* Leave out the memory of each gradient, and each buffer. */
static void test_missing_gradients_and_buffers(void)
{
    struct scan scan = whole_scan(2);
    const struct scan_inputs inputs = inputs_of(&scan);
    const struct scan_tensor grad_out = input(&scan.grad_out), no_grad_out = {NULL, {0, 0, 0}};
    const struct scan_mutable_tensor no_out = {NULL, {0, 0, 0}};
    struct scan_gradients grads = gradients_of(&scan);
    void **const required[] = {&grads.u.data, &grads.delta.data, &grads.B.data,
                               &grads.C.data, &grads.z.data,     &grads.A,
                               &grads.D,      &grads.delta_bias, &grads.W};
    char memory[1];
    for (int i = 0; i < 9; i++) {
        void *const given = *required[i];
        *required[i] = NULL;
        CHECK(mamba_scan_backward(&scan.dims, &inputs, &grad_out, memory, &grads, memory) ==
                  SCAN_ERROR_NULL,
              "no gradient %d", i);
        *required[i] = given;
    }
    const enum scan_status got[] = {
        mamba_scan_forward(&scan.dims, &inputs, &no_out, memory, memory),
        mamba_scan_forward(&scan.dims, &inputs, &scan.out.view, memory, NULL),
        mamba_scan_backward(&scan.dims, &inputs, &no_grad_out, memory, &grads, memory),
        mamba_scan_backward(&scan.dims, &inputs, &grad_out, NULL, &grads, memory),
        mamba_scan_backward(&scan.dims, &inputs, &grad_out, memory, &grads, NULL)};
    for (int i = 0; i < 5; i++)
        CHECK(got[i] == SCAN_ERROR_NULL, "buffer %d: status %d", i, (int)got[i]);
    free_scan(&scan);
}

int main(void)
{
    for (enum scan_isa isa = SCAN_ISA_SCALAR; isa <= SCAN_ISA_AVX512; isa++) {
        if (!mamba_scan_isa_works(isa))
            continue;
        printf("instruction set %d\n", (int)isa);
        test_scans(SCAN_FLOAT32, isa);
        test_threads(isa);
        test_mode(isa);
        test_caller_modes(isa);
        test_growth(isa);
    }
    CHECK(mamba_scan_isa_works(mamba_scan_best_isa()), "the best instruction set works");
#if defined(__aarch64__)
    CHECK(mamba_scan_best_isa() == SCAN_ISA_NEON, "arm64 without NEON");
#endif
    test_scans(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    test_refused_dims();
    test_missing_inputs();
    test_missing_gradients_and_buffers();
    return check_summary();
}
