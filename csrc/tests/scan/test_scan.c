/* The training kernels on every instruction set of this machine against the plain definition in
 * double precision: random shapes, layouts and options. Under ASan each buffer is exactly as large
 * as it may be. */
#include "check.h"
#include "exact_scan.h"

#include <stdlib.h>
#include <string.h>

static struct scan random_scan(enum scan_type type, enum scan_isa isa, bool tied)
{
    const ptrdiff_t batch = between(1, 4) == 4 ? between(60, 70) : between(1, 3);
    const struct scan_dims dims = {.batch = batch,
                                   .channels = batch > 10 ? between(1, 20) : between(1, 70),
                                   .length = between(1, 140),
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

static void run_scan(struct scan *scan)
{
    const struct scan_dims *dims = &scan->dims;
    const struct scan_tensor none = {NULL, {0, 0, 0}};
    const struct scan_mutable_tensor nothing = {NULL, {0, 0, 0}};
    const struct scan_inputs inputs = {input(&scan->u),
                                       input(&scan->delta),
                                       input(&scan->b),
                                       input(&scan->c),
                                       scan->has_z ? input(&scan->z) : none,
                                       scan->a.memory,
                                       scan->has_d ? scan->d.memory : NULL,
                                       scan->has_bias ? scan->bias.memory : NULL,
                                       dims->rank > 0 ? scan->w.memory : NULL};
    const struct scan_gradients grads = {scan->grad_u.view,
                                         scan->grad_delta.view,
                                         scan->grad_b.view,
                                         scan->grad_c.view,
                                         scan->has_z ? scan->grad_z.view : nothing,
                                         scan->grad_a.memory,
                                         scan->has_d ? scan->grad_d.memory : NULL,
                                         scan->has_bias ? scan->grad_bias.memory : NULL,
                                         dims->rank > 0 ? scan->grad_w.memory : NULL};
    const struct scan_tensor grad_out = input(&scan->grad_out);
    const size_t checkpoint_bytes = mamba_scan_checkpoint_bytes(dims);
    void *checkpoints = nan_memory(checkpoint_bytes > 0 ? checkpoint_bytes : 1);
    void *workspace = nan_memory(mamba_scan_workspace_bytes(dims));
    enum scan_status status =
        mamba_scan_forward(dims, &inputs, &scan->out.view, checkpoints, workspace);
    CHECK(status == SCAN_OK, "forward: status %d", status);
    free(workspace);
    workspace = nan_memory(mamba_scan_workspace_bytes(dims));
    status = mamba_scan_backward(dims, &inputs, &grad_out, checkpoints, &grads, workspace);
    CHECK(status == SCAN_OK, "backward: status %d", status);
    free(workspace);
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
    for (int i = 0; i < 60; i++) {
        struct scan scan = random_scan(type, isa, i % 3 == 0);
        exact_scan(&scan);
        run_scan(&scan);
        check_scan(&scan);
        free_scan(&scan);
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
        const struct tensor *pairs[][2] = {
            {&one.out, &many.out},       {&one.grad_u, &many.grad_u},
            {&one.grad_b, &many.grad_b}, {&one.grad_c, &many.grad_c},
            {&one.grad_a, &many.grad_a}, {&one.grad_delta, &many.grad_delta}};
        for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
            CHECK(memcmp(pairs[p][0]->memory, pairs[p][1]->memory, count_bytes(pairs[p][0])) == 0,
                  "isa %d, tensor %zu differs between 1 and 3 threads", (int)isa, p);
        }
        free_scan(&one);
        free_scan(&many);
    }
}

static void test_refusals(void)
{
    struct scan scan = random_scan(SCAN_FLOAT32, SCAN_ISA_SCALAR, false);
    struct scan_dims dims = scan.dims;
    struct scan_inputs inputs;
    memset(&inputs, 0, sizeof inputs);
    struct scan_gradients grads;
    memset(&grads, 0, sizeof grads);
    const struct scan_tensor grad_out = {NULL, {0, 0, 0}};
    char memory[1];
    dims.length = 0;
    CHECK(mamba_scan_workspace_bytes(&dims) == 0, "length 0");
    CHECK(mamba_scan_checkpoint_bytes(&dims) == 0, "length 0");
    CHECK(mamba_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_DIMS,
          "length 0");
    dims.length = 1;
    dims.isa = 99;
    CHECK(mamba_scan_workspace_bytes(&dims) == 0, "isa 99");
    CHECK(mamba_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_ISA,
          "isa 99");
    dims.isa = SCAN_ISA_SCALAR;
    dims.type = 7;
    CHECK(mamba_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_ISA,
          "type 7");
    dims.type = SCAN_FLOAT32;
    CHECK(mamba_scan_forward(&dims, &inputs, &scan.out.view, NULL, memory) == SCAN_ERROR_NULL,
          "no inputs");
    CHECK(mamba_scan_backward(&dims, &inputs, &grad_out, memory, &grads, memory) == SCAN_ERROR_NULL,
          "no inputs");
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
    }
    CHECK(mamba_scan_isa_works(mamba_scan_best_isa()), "the best instruction set works");
#if defined(__aarch64__)
    CHECK(mamba_scan_best_isa() == SCAN_ISA_NEON, "arm64 without NEON");
#endif
    test_scans(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    test_refusals();
    return check_summary();
}
