/* The scan's promises that no result shows: it refuses each bad argument alone, and both the scan
 * and the block give the thread's floating-point mode back. */
#include "check.h"
#include "exact_block.h"

#include <stdlib.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

static const struct scan_dims DIMS = {.batch = 2,
                                      .channels = 5,
                                      .length = 3,
                                      .states = 4,
                                      .rank = 2,
                                      .threads = 1,
                                      .type = SCAN_FLOAT32,
                                      .isa = SCAN_ISA_SCALAR};

/* A whole call: everything is given, also what is optional. */
struct call {
    struct scan scan;
    struct scan_dims dims;
    struct scan_inputs inputs;
    struct scan_tensor grad_out;
    struct scan_mutable_tensor out;
    struct scan_gradients grads;
    void *checkpoints, *workspace;
};

static struct call make_call(void)
{
    struct call call = {.dims = DIMS, .scan = make_scan(&DIMS, false, false)};
    const struct scan *scan = &call.scan;
    call.inputs = (struct scan_inputs){input(&scan->u), input(&scan->delta), input(&scan->b),
                                       input(&scan->c), input(&scan->z),     scan->a.memory,
                                       scan->d.memory,  scan->bias.memory,   scan->w.memory};
    call.grads =
        (struct scan_gradients){scan->grad_u.view,   scan->grad_delta.view,  scan->grad_b.view,
                                scan->grad_c.view,   scan->grad_z.view,      scan->grad_a.memory,
                                scan->grad_d.memory, scan->grad_bias.memory, scan->grad_w.memory};
    call.grad_out = input(&scan->grad_out);
    call.out = scan->out.view;
    call.checkpoints = nan_memory(mamba_scan_checkpoint_bytes(&DIMS) + 1);
    call.workspace = nan_memory(mamba_scan_workspace_bytes(&DIMS));
    return call;
}

static void free_call(struct call *call)
{
    free(call->workspace);
    free(call->checkpoints);
    free_scan(&call->scan);
}

static enum scan_status forward(const struct call *call)
{
    return mamba_scan_forward(&call->dims, &call->inputs, &call->out, call->checkpoints,
                              call->workspace);
}

static enum scan_status backward(const struct call *call)
{
    return mamba_scan_backward(&call->dims, &call->inputs, &call->grad_out, call->checkpoints,
                               &call->grads, call->workspace);
}

static void check_dims(const struct call *call, enum scan_status wanted, const char *what)
{
    CHECK(mamba_scan_workspace_bytes(&call->dims) == 0, "%s: workspace", what);
    CHECK(mamba_scan_checkpoint_bytes(&call->dims) == 0, "%s: checkpoints", what);
    CHECK(forward(call) == wanted, "%s: forward: %d", what, (int)forward(call));
    CHECK(backward(call) == wanted, "%s: backward: %d", what, (int)backward(call));
}

static void test_each_dim(void)
{
    struct call call = make_call();
    struct scan_dims *dims = &call.dims;
    ptrdiff_t *const sizes[] = {&dims->batch,  &dims->channels, &dims->length,
                                &dims->states, &dims->threads,  &dims->rank};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const ptrdiff_t good = *sizes[i];
        char what[40];
        for (ptrdiff_t bad = -1; bad <= 0; bad++) {
            if (sizes[i] == &dims->rank && bad == 0)
                continue; /* delta itself is given */
            *sizes[i] = bad;
            snprintf(what, sizeof what, "size %zu is %td", i, bad);
            check_dims(&call, SCAN_ERROR_DIMS, what);
        }
        *sizes[i] = good;
    }
    dims->isa = (enum scan_isa)99;
    check_dims(&call, SCAN_ERROR_ISA, "isa 99");
    dims->isa = SCAN_ISA_SCALAR;
    dims->type = (enum scan_type)2;
    check_dims(&call, SCAN_ERROR_ISA, "type 2");
    dims->type = SCAN_FLOAT32;
    CHECK(forward(&call) == SCAN_OK && backward(&call) == SCAN_OK, "all good");
    free_call(&call);
}

/* Takes a pointer away, and checks the status of both passes. */
static void check_missing(struct call *call, const void **pointer, bool forward_needs,
                          const char *what)
{
    const void *kept = *pointer;
    *pointer = NULL;
    if (forward_needs)
        CHECK(forward(call) == SCAN_ERROR_NULL, "forward without %s: %d", what, (int)forward(call));
    CHECK(backward(call) == SCAN_ERROR_NULL, "backward without %s: %d", what, (int)backward(call));
    *pointer = kept;
}

static void test_each_pointer(void)
{
    struct call call = make_call();
    struct scan_inputs *in = &call.inputs;
    const struct {
        const void **pointer;
        const char *name;
    } inputs[] = {{&in->u.data, "u"}, {&in->delta.data, "delta"},
                  {&in->B.data, "B"}, {&in->C.data, "C"},
                  {&in->A, "A"},      {&in->W, "W"}};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        check_missing(&call, inputs[i].pointer, true, inputs[i].name);
    struct scan_gradients *grads = &call.grads;
    const struct {
        void **pointer;
        const char *name;
    } gradients[] = {{&grads->u.data, "u"}, {&grads->delta.data, "delta"},
                     {&grads->B.data, "B"}, {&grads->C.data, "C"},
                     {&grads->z.data, "z"}, {&grads->A, "A"},
                     {&grads->D, "D"},      {&grads->delta_bias, "delta_bias"},
                     {&grads->W, "W"},      {&call.checkpoints, "checkpoints"}};
    for (size_t i = 0; i < sizeof gradients / sizeof *gradients; i++) {
        void *const kept = *gradients[i].pointer;
        *gradients[i].pointer = NULL;
        CHECK(backward(&call) == SCAN_ERROR_NULL, "no memory for the gradient of %s: %d",
              gradients[i].name, (int)backward(&call));
        *gradients[i].pointer = kept;
    }
    check_missing(&call, &call.grad_out.data, false, "grad_out");
    void *const workspace = call.workspace, *const out = call.out.data;
    call.workspace = NULL;
    CHECK(forward(&call) == SCAN_ERROR_NULL && backward(&call) == SCAN_ERROR_NULL, "workspace");
    call.workspace = workspace;
    call.out.data = NULL;
    CHECK(forward(&call) == SCAN_ERROR_NULL, "out");
    call.out.data = out;
    call.dims.rank = 0; /* W belongs to a rank */
    CHECK(forward(&call) == SCAN_ERROR_NULL && backward(&call) == SCAN_ERROR_NULL, "W, no rank");
    free_call(&call);
}

#if defined(__SSE__)
/* Control bits of MXCSR without those that record what has happened. */
enum { CONTROL = 0xFFC0, DEFAULT_MODE = 0x1F80, FLUSHING = 0x8000 | 0x0040 };

static unsigned mode(void)
{
    return _mm_getcsr() & CONTROL;
}

static void set_mode(unsigned mode)
{
    _mm_setcsr(mode);
}

static void check_scan_modes(enum scan_isa isa, unsigned wanted)
{
    struct call call = make_call();
    call.dims.isa = isa;
    free(call.workspace);
    call.workspace = nan_memory(mamba_scan_workspace_bytes(&call.dims));
    set_mode(wanted);
    enum scan_status status = forward(&call);
    CHECK(status == SCAN_OK && mode() == wanted, "isa %d: scan forward: 0x%X", (int)isa, mode());
    set_mode(wanted);
    status = backward(&call);
    CHECK(status == SCAN_OK && mode() == wanted, "isa %d: scan backward: 0x%X", (int)isa, mode());
    set_mode(DEFAULT_MODE);
    free_call(&call);
}

static void check_block_modes(enum scan_isa isa, unsigned wanted)
{
    const struct block_dims dims = {.batch = 1,
                                    .length = 3,
                                    .d_model = 4,
                                    .channels = 5,
                                    .states = 2,
                                    .rank = 1,
                                    .taps = 2,
                                    .directions = 1,
                                    .threads = 1,
                                    .isa = isa,
                                    .norm_eps = 1e-5};
    enum { ROOM = 64 }; /* more than any tensor of these sizes has */
    static float ones[ROOM], gradients[ROOM], out[ROOM];
    for (int i = 0; i < ROOM; i++)
        ones[i] = 1;
    const struct block_weights weights = {
        .in_proj = ones,
        .out_proj = ones,
        .direction = {{.conv_weight = ones, .x_proj = ones, .dt_proj = ones, .A_log = ones}}};
    const struct block_gradients grads = {.in_proj = gradients,
                                          .out_proj = gradients,
                                          .direction = {{.conv_weight = gradients,
                                                         .x_proj = gradients,
                                                         .dt_proj = gradients,
                                                         .A_log = gradients}}};
    void *saved = nan_memory(mamba_block_saved_bytes(&dims));
    void *workspace = nan_memory(mamba_block_workspace_bytes(&dims));
    set_mode(wanted);
    enum scan_status status = mamba_block_forward(&dims, &weights, ones, out, saved, workspace);
    CHECK(status == SCAN_OK && mode() == wanted, "isa %d: block forward: 0x%X", (int)isa, mode());
    set_mode(wanted);
    status = mamba_block_backward(&dims, &weights, ones, saved, ones, out, &grads, workspace);
    CHECK(status == SCAN_OK && mode() == wanted, "isa %d: block backward: 0x%X", (int)isa, mode());
    set_mode(DEFAULT_MODE);
    free(workspace);
    free(saved);
}

/* Both ways: a mode that the kernels change, and one that they also use. */
static void test_modes(void)
{
    for (enum scan_isa isa = SCAN_ISA_SCALAR; isa <= SCAN_ISA_AVX512; isa++) {
        for (int flushing = 0; mamba_scan_isa_works(isa) && flushing < 2; flushing++) {
            const unsigned wanted = DEFAULT_MODE | (flushing ? FLUSHING : 0);
            check_scan_modes(isa, wanted);
            check_block_modes(isa, wanted);
        }
    }
}
#else
static void test_modes(void)
{
}
#endif

int main(void)
{
    test_each_dim();
    test_each_pointer();
    test_modes();
    return check_summary();
}
