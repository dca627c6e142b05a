/* The training kernels of a whole residual block on every instruction set of this machine against
 * the plain definition in double precision: random shapes and options. Under ASan each buffer is
 * exactly as large as it may be. */
#include "check.h"
#include "exact_block.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const NAMES[ALL_WEIGHTS] = {
    "norm",       "in_proj",     "out_proj",        "conv_weight",
    "conv_bias",  "x_proj",      "dt_proj",         "dt_bias",
    "A_log",      "D",           "2nd conv_weight", "2nd conv_bias",
    "2nd x_proj", "2nd dt_proj", "2nd dt_bias",     "2nd A_log",
    "2nd D"};

/* Random blocks */

static BlockDims random_dims(ScanType type, ScanIsa isa)
{
    const int many = between(1, 4) == 4;
    const BlockDims dims = {.batch = many ? between(60, 70) : between(1, 3),
                            .length = between(1, 80),
                            .d_model = between(1, 40),
                            .channels = many ? between(1, 20) : between(1, 40),
                            .states = between(1, 20),
                            .rank = between(1, 5),
                            .taps = between(1, 6),
                            .directions = between(1, 2),
                            .reverse = between(0, 1),
                            .tied = between(0, 1),
                            .threads = between(1, 3),
                            .type = type,
                            .isa = isa,
                            .norm_eps = 1e-5};
    return dims;
}

/* A weight of (outputs, inputs), and memory for its gradient. */
static void make_weight(Block *block, int index, ptrdiff_t outputs, ptrdiff_t inputs, double bound)
{
    const int dbl = block->dims.type == SCAN_FLOAT64;
    block->weight[index] = make_parameter(outputs * inputs, dbl, -bound, bound);
    block->grad[index] = make_parameter(outputs * inputs, dbl, 7, 8);
    block->given[index] = 1;
}

static void make_weights(Block *block)
{
    const BlockDims *dims = &block->dims;
    const ptrdiff_t channels = dims->channels;
    const double inner = 1.7 / sqrt((double)channels);
    make_weight(block, NORM, dims->d_model, 1, 2);
    make_weight(block, IN_PROJ, 2 * channels, dims->d_model, 1.7 / sqrt((double)dims->d_model));
    make_weight(block, OUT_PROJ, dims->d_model, channels, inner);
    for (ptrdiff_t i = 0; i < MAX_DIRECTIONS; i++) {
        const int start = direction_start(i);
        make_weight(block, start + CONV_WEIGHT, channels, dims->taps, 1);
        make_weight(block, start + CONV_BIAS, channels, 1, 0.5);
        make_weight(block, start + X_PROJ, dims->rank + 2 * dims->states, channels, inner);
        make_weight(block, start + DT_PROJ, channels, dims->rank, 1);
        make_weight(block, start + DT_BIAS, channels, 1, 2);
        make_weight(block, start + A_LOG, channels, dims->tied ? 1 : dims->states, 1.4);
        make_weight(block, start + SKIP, channels, 1, 1);
    }
}

static Block make_block(const BlockDims *dims)
{
    const int dbl = dims->type == SCAN_FLOAT64;
    Block block = {.dims = *dims};
    Tensor *sequences[] = {&block.input, &block.grad_out, &block.out, &block.grad_input};
    for (int i = 0; i < 4; i++) {
        const double low = i < 2 ? -1 : 7;
        *sequences[i] =
            make_tensor(dims->batch, dims->length, dims->d_model, dbl, 0, 0, low, low + 2);
    }
    make_weights(&block);
    return block;
}

/* Takes away each weight that may be missing with probability one half. */
static void omit_weights(Block *block)
{
    const int optional[] = {CONV_BIAS, DT_BIAS, SKIP};
    block->given[NORM] = between(0, 1) != 0;
    for (ptrdiff_t i = 0; i < MAX_DIRECTIONS; i++) {
        for (int j = 0; j < 3; j++) {
            block->given[direction_start(i) + optional[j]] = between(0, 1) != 0;
        }
    }
}

static void free_block(Block *block)
{
    Tensor *sequences[] = {&block->input, &block->grad_out, &block->out, &block->grad_input};
    for (int i = 0; i < 4; i++) {
        free_tensor(sequences[i]);
    }
    for (int i = 0; i < ALL_WEIGHTS; i++) {
        free_tensor(&block->weight[i]);
        free_tensor(&block->grad[i]);
    }
}

/* The kernel */

static int is_used(const Block *block, int index)
{
    return block->given[index] && index < direction_start(block->dims.directions);
}

_Static_assert(sizeof(BlockWeights) == ALL_WEIGHTS * sizeof(void *), "a pointer for each weight");
_Static_assert(sizeof(BlockGradients) == sizeof(BlockWeights), "a gradient for each weight");

/* tensors -> BlockWeights or BlockGradients, which hold their pointers in the same order. */
static void point_to(const Block *block, const Tensor *tensors, void *structure)
{
    void *pointers[ALL_WEIGHTS];
    for (int i = 0; i < ALL_WEIGHTS; i++) {
        pointers[i] = is_used(block, i) ? tensors[i].memory : NULL;
    }
    memcpy(structure, pointers, sizeof pointers);
}

static BlockWeights weights_of(const Block *block)
{
    BlockWeights weights;
    point_to(block, block->weight, &weights);
    return weights;
}

static BlockGradients gradients_of(const Block *block)
{
    BlockGradients grads;
    point_to(block, block->grad, &grads);
    return grads;
}

static void run_forward(Block *block, void *saved)
{
    const BlockWeights weights = weights_of(block);
    void *workspace = nan_memory(mamba_block_workspace_bytes(&block->dims));
    const ScanStatus status = mamba_block_forward(&block->dims, &weights, block->input.memory,
                                                  block->out.memory, saved, workspace);
    CHECK(status == SCAN_OK, "forward: status %d", (int)status);
    free(workspace);
}

static void run_block(Block *block)
{
    const BlockWeights weights = weights_of(block);
    const BlockGradients grads = gradients_of(block);
    void *saved = nan_memory(mamba_block_saved_bytes(&block->dims));
    run_forward(block, saved);
    void *workspace = nan_memory(mamba_block_workspace_bytes(&block->dims));
    const ScanStatus status =
        mamba_block_backward(&block->dims, &weights, block->input.memory, saved,
                             block->grad_out.memory, block->grad_input.memory, &grads, workspace);
    CHECK(status == SCAN_OK, "backward: status %d", (int)status);
    free(workspace);
    free(saved);
}

/* The tests */

/* Tensors that a block computes: out, the input's gradient, the weights' gradients. */
enum { RESULTS = 2 + ALL_WEIGHTS };

static const Tensor *result(const Block *block, int i)
{
    return i == 0 ? &block->out : i == 1 ? &block->grad_input : &block->grad[i - 2];
}

static void move_elements(Tensor *tensor)
{
    for (size_t i = 0; i < count_elements(tensor); i++) {
        tensor->exact[i] *= 1 + uniform(-1, 1) * 6e-8;
    }
}

/* How far each result moves when every input moves by half a unit in a float's last place: where
 * that is far, sums cancel, and no float kernel can do better. `seed` made the block. */
static void measure_rounding(const Block *block, uint64_t seed, double moved_by[RESULTS])
{
    random_state = seed;
    Block moved = make_block(&block->dims);
    omit_weights(&moved);
    move_elements(&moved.input);
    move_elements(&moved.grad_out);
    for (int i = 0; i < ALL_WEIGHTS; i++) {
        move_elements(&moved.weight[i]);
    }
    exact_block(&moved);
    for (int i = 0; i < RESULTS; i++) {
        moved_by[i] = exact_distance(result(&moved, i), result(block, i));
    }
    free_block(&moved);
}

static void check_result(const Block *block, int i, double moved_by)
{
    const BlockDims *dims = &block->dims;
    const char *name = i == 0 ? "out" : i == 1 ? "the input's gradient" : NAMES[i - 2];
    const double distance = relative_distance(result(block, i));
    CHECK(distance <= fmax(tolerance(result(block, i)), 10 * moved_by),
          "isa %td type %td, %td x %td x %td, %td channels, %td states, rank %td, %td taps, "
          "%td directions, reverse %td, tied %td: %s: relative distance %.3g, by rounding %.3g",
          dims->isa, dims->type, dims->batch, dims->length, dims->d_model, dims->channels,
          dims->states, dims->rank, dims->taps, dims->directions, dims->reverse, dims->tied, name,
          distance, moved_by);
}

static void test_one(const BlockDims *dims)
{
    const uint64_t seed = random_state;
    double moved_by[RESULTS] = {0};
    Block block = make_block(dims);
    omit_weights(&block);
    exact_block(&block);
    run_block(&block);
    if (dims->type == SCAN_FLOAT32) {
        measure_rounding(&block, seed, moved_by);
    }
    for (int i = 0; i < RESULTS; i++) {
        if (i < 2 || is_used(&block, i - 2)) {
            check_result(&block, i, moved_by[i]);
        }
    }
    free_block(&block);
}

static void test_blocks(ScanType type, ScanIsa isa)
{
    for (int i = 0; i < 60; i++) {
        const BlockDims dims = random_dims(type, isa);
        test_one(&dims);
    }
}

/* Lengths around the chunk's, and fewer steps than taps, whatever the random ones are. */
static void test_lengths(ScanType type, ScanIsa isa)
{
    const ptrdiff_t lengths[] = {1, 2, 63, 64, 65, 128, 130};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        BlockDims dims = random_dims(type, isa);
        dims.batch = 2;
        dims.length = lengths[i];
        dims.taps = 4;
        dims.directions = 2;
        test_one(&dims);
    }
}

static int same_bits(const Tensor *one, const Tensor *other)
{
    return memcmp(one->memory, other->memory, count_bytes(one)) == 0;
}

/* The same bits for any number of threads. */
static void test_threads(ScanIsa isa)
{
    for (int i = 0; i < 10; i++) {
        BlockDims dims = random_dims(SCAN_FLOAT32, isa);
        const uint64_t seed = random_state;
        dims.threads = 1;
        Block one = make_block(&dims);
        random_state = seed;
        dims.threads = 3;
        Block many = make_block(&dims);
        run_block(&one);
        run_block(&many);
        CHECK(same_bits(&one.out, &many.out), "isa %d: out differs by threads", (int)isa);
        CHECK(same_bits(&one.grad_input, &many.grad_input),
              "isa %d: the input's gradient differs by threads", (int)isa);
        for (int j = 0; j < direction_start(dims.directions); j++) {
            CHECK(same_bits(&one.grad[j], &many.grad[j]),
                  "isa %d: the gradient of %s differs by threads", (int)isa, NAMES[j]);
        }
        free_block(&one);
        free_block(&many);
    }
}

/* The same output bits where nothing is kept for a backward pass. */
static void test_nothing_saved(ScanIsa isa)
{
    for (int i = 0; i < 10; i++) {
        const BlockDims dims = random_dims(SCAN_FLOAT32, isa);
        Block block = make_block(&dims);
        omit_weights(&block);
        void *saved = nan_memory(mamba_block_saved_bytes(&dims));
        run_forward(&block, saved);
        void *kept = malloc(count_bytes(&block.out));
        memcpy(kept, block.out.memory, count_bytes(&block.out));
        memset(block.out.memory, 0, count_bytes(&block.out));
        run_forward(&block, NULL);
        CHECK(memcmp(kept, block.out.memory, count_bytes(&block.out)) == 0,
              "isa %d: the output differs where nothing is saved", (int)isa);
        free(kept);
        free(saved);
        free_block(&block);
    }
}

static const BlockDims SMALL = {2,   3, 4, 5, 2, 1, 2, 2, 0, 0, 1, SCAN_FLOAT32, SCAN_ISA_SCALAR,
                                1e-5};

/* All three functions answer `wanted`, and no size is given. Nothing is read or written. */
static void check_dims_refused(const BlockDims *dims, ScanStatus wanted, const char *what)
{
    const BlockWeights weights = {.norm = NULL};
    const BlockGradients grads = {.norm = NULL};
    char memory[1];
    CHECK(mamba_block_saved_bytes(dims) == 0, "%s", what);
    CHECK(mamba_block_workspace_bytes(dims) == 0, "%s", what);
    CHECK(mamba_block_forward(dims, &weights, memory, memory, memory, memory) == wanted, "%s",
          what);
    CHECK(mamba_block_backward(dims, &weights, memory, memory, memory, memory, &grads, memory) ==
              wanted,
          "%s", what);
}

static void test_refused_dims(void)
{
    BlockDims dims = SMALL;
    ptrdiff_t *const sizes[] = {&dims.batch,    &dims.length,     &dims.d_model,
                                &dims.channels, &dims.states,     &dims.rank,
                                &dims.taps,     &dims.directions, &dims.threads};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (ptrdiff_t bad = -1; bad <= 0; bad++) {
            const ptrdiff_t good = *sizes[i];
            *sizes[i] = bad;
            char what[40];
            snprintf(what, sizeof what, "size %zu is %td", i, bad);
            check_dims_refused(&dims, SCAN_ERROR_DIMS, what);
            *sizes[i] = good;
        }
    }
    dims.directions = 3;
    check_dims_refused(&dims, SCAN_ERROR_DIMS, "3 directions");
    dims = SMALL;
    dims.reverse = 2;
    check_dims_refused(&dims, SCAN_ERROR_DIMS, "reverse 2");
    dims.reverse = -1;
    check_dims_refused(&dims, SCAN_ERROR_DIMS, "reverse -1");
    dims = SMALL;
    dims.tied = 2;
    check_dims_refused(&dims, SCAN_ERROR_DIMS, "tied 2");
    dims.tied = -1;
    check_dims_refused(&dims, SCAN_ERROR_DIMS, "tied -1");
    dims = SMALL;
    dims.isa = 99;
    check_dims_refused(&dims, SCAN_ERROR_ISA, "isa 99");
    dims = SMALL;
    dims.type = 7;
    check_dims_refused(&dims, SCAN_ERROR_ISA, "type 7");
}

static ScanStatus call(const Block *block, const BlockWeights *weights, const BlockGradients *grads,
                       void *const buffers[5])
{
    if (grads == NULL) {
        return mamba_block_forward(&block->dims, weights, buffers[0], buffers[1], NULL, buffers[2]);
    }
    return mamba_block_backward(&block->dims, weights, buffers[0], buffers[1], buffers[2],
                                buffers[3], grads, buffers[4]);
}

/* Whether a direction may do without its weight i. */
static int is_optional(int i)
{
    return i == CONV_BIAS || i == DT_BIAS || i == SKIP;
}

/* Each weight that must be there missing in turn, then the memory of each gradient. */
static void test_missing_weights(void)
{
    Block block = make_block(&SMALL);
    char memory[1];
    void *const buffers[5] = {memory, memory, memory, memory, memory};
    for (int i = 0; i < ALL_WEIGHTS; i++) {
        const int within = (i - SHARED_WEIGHTS) % DIRECTION_WEIGHTS;
        const BlockWeights whole = weights_of(&block);
        block.given[i] = 0;
        const BlockWeights weights = weights_of(&block);
        const BlockGradients grads = gradients_of(&block);
        block.given[i] = 1;
        CHECK(call(&block, &whole, &grads, buffers) == SCAN_ERROR_NULL, "no gradient of %s",
              NAMES[i]);
        if (i == NORM || (i >= SHARED_WEIGHTS && is_optional(within))) {
            continue;
        }
        const BlockGradients all = gradients_of(&block);
        CHECK(call(&block, &weights, NULL, buffers) == SCAN_ERROR_NULL, "no %s", NAMES[i]);
        CHECK(call(&block, &weights, &all, buffers) == SCAN_ERROR_NULL, "no %s", NAMES[i]);
    }
    free_block(&block);
}

static void test_missing_buffers(void)
{
    Block block = make_block(&SMALL);
    const BlockWeights weights = weights_of(&block);
    const BlockGradients grads = gradients_of(&block);
    char memory[1];
    for (int i = 0; i < 5; i++) {
        void *buffers[5] = {memory, memory, memory, memory, memory};
        buffers[i] = NULL;
        CHECK(i > 2 || call(&block, &weights, NULL, buffers) == SCAN_ERROR_NULL, "forward, %d", i);
        CHECK(call(&block, &weights, &grads, buffers) == SCAN_ERROR_NULL, "backward, %d", i);
    }
    free_block(&block);
}

int main(void)
{
    for (ScanIsa isa = SCAN_ISA_SCALAR; isa <= SCAN_ISA_AVX512; isa++) {
        if (!scan_isa_works(isa)) {
            continue;
        }
        printf("instruction set %d\n", (int)isa);
        test_blocks(SCAN_FLOAT32, isa);
        test_lengths(SCAN_FLOAT32, isa);
        test_threads(isa);
        test_nothing_saved(isa);
    }
    test_blocks(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    test_lengths(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    test_refused_dims();
    test_missing_weights();
    test_missing_buffers();
    return check_summary();
}
