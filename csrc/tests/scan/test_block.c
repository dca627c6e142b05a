/* The training kernels of a whole residual block on every instruction set of this machine against
 * the plain definition in double precision: random shapes and options. Under ASan each buffer is
 * exactly as large as it may be. */
#define _GNU_SOURCE
#include "check.h"
#include "exact_block.h"
#include "float_mode.h"

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

/* Most large batches are short: the chunks of a long sequence are worked on item by item. */
static struct block_dims random_dims(enum scan_type type, enum scan_isa isa)
{
    const bool many = between(1, 4) == 4;
    const struct block_dims dims = {.batch = many ? between(60, 70) : between(1, 3),
                                    .length = between(1, many && between(1, 8) > 1 ? 20 : 80),
                                    .d_model = between(1, 40),
                                    .channels = many ? between(1, 20) : between(1, 40),
                                    .states = between(1, 20),
                                    .rank = between(1, 5),
                                    .taps = between(1, 6),
                                    .directions = between(1, 2),
                                    .reverse = coin(),
                                    .tied = coin(),
                                    .threads = between(1, 3),
                                    .type = type,
                                    .isa = isa,
                                    .norm_eps = 1e-5};
    return dims;
}

/* A weight of (outputs, inputs), and memory for its gradient. */
static void make_weight(struct block *block, int index, ptrdiff_t outputs, ptrdiff_t inputs,
                        double bound)
{
    const bool is_double = block->dims.type == SCAN_FLOAT64;
    block->weight[index] = make_parameter(outputs * inputs, is_double, -bound, bound);
    block->grad[index] = make_parameter(outputs * inputs, is_double, 7, 8);
    block->given[index] = true;
}

static void make_weights(struct block *block)
{
    const struct block_dims *dims = &block->dims;
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

static struct block make_block(const struct block_dims *dims)
{
    const bool is_double = dims->type == SCAN_FLOAT64;
    struct block block = {.dims = *dims};
    struct tensor *sequences[] = {&block.input, &block.grad_out, &block.out, &block.grad_input};
    for (int i = 0; i < 4; i++) {
        const double low = i < 2 ? -1 : 7;
        *sequences[i] = make_tensor(dims->batch, dims->length, dims->d_model, is_double, false,
                                    false, low, low + 2);
    }
    make_weights(&block);
    return block;
}

/* Take away each optional weight with probability one half. */
static void omit_weights(struct block *block)
{
    const int optional[] = {CONV_BIAS, DT_BIAS, SKIP};
    block->given[NORM] = coin();
    for (ptrdiff_t i = 0; i < MAX_DIRECTIONS; i++)
        for (int j = 0; j < 3; j++)
            block->given[direction_start(i) + optional[j]] = coin();
}

static void free_block(struct block *block)
{
    struct tensor *sequences[] = {&block->input, &block->grad_out, &block->out, &block->grad_input};
    for (int i = 0; i < 4; i++)
        free_tensor(sequences[i]);
    for (int i = 0; i < ALL_WEIGHTS; i++) {
        free_tensor(&block->weight[i]);
        free_tensor(&block->grad[i]);
    }
}

/* The kernel */

static bool is_used(const struct block *block, int index)
{
    return block->given[index] && index < direction_start(block->dims.directions);
}

_Static_assert(sizeof(struct block_weights) == ALL_WEIGHTS * sizeof(void *),
               "a pointer for each weight");
_Static_assert(sizeof(struct block_gradients) == sizeof(struct block_weights),
               "a gradient for each weight");

/* tensors -> struct block_weights or block_gradients, whose pointers have the same order. */
static void point_to(const struct block *block, const struct tensor *tensors, void *structure)
{
    void *pointers[ALL_WEIGHTS];
    for (int i = 0; i < ALL_WEIGHTS; i++)
        pointers[i] = is_used(block, i) ? tensors[i].memory : NULL;
    memcpy(structure, pointers, sizeof pointers);
}

static struct block_weights weights_of(const struct block *block)
{
    struct block_weights weights;
    point_to(block, block->weight, &weights);
    return weights;
}

static struct block_gradients gradients_of(const struct block *block)
{
    struct block_gradients grads;
    point_to(block, block->grad, &grads);
    return grads;
}

static void run_forward(struct block *block, void *saved)
{
    const struct block_weights weights = weights_of(block);
    void *workspace = nan_memory(mamba_block_workspace_bytes(&block->dims));
    const enum scan_status status = mamba_block_forward(&block->dims, &weights, block->input.memory,
                                                        block->out.memory, saved, workspace);
    CHECK(status == SCAN_OK, "forward: status %d", (int)status);
    free(workspace);
}

static void run_backward(struct block *block, const void *saved)
{
    const struct block_weights weights = weights_of(block);
    const struct block_gradients grads = gradients_of(block);
    void *workspace = nan_memory(mamba_block_workspace_bytes(&block->dims));
    const enum scan_status status =
        mamba_block_backward(&block->dims, &weights, block->input.memory, saved,
                             block->grad_out.memory, block->grad_input.memory, &grads, workspace);
    CHECK(status == SCAN_OK, "backward: status %d", (int)status);
    free(workspace);
}

static void run_block(struct block *block)
{
    void *saved = nan_memory(mamba_block_saved_bytes(&block->dims));
    run_forward(block, saved);
    run_backward(block, saved);
    free(saved);
}

/* The tests */

/* Tensors that a block computes: out, the input's gradient, the weights' gradients. */
enum { RESULTS = 2 + ALL_WEIGHTS };

static const struct tensor *result(const struct block *block, int i)
{
    return i == 0 ? &block->out : i == 1 ? &block->grad_input : &block->grad[i - 2];
}

static void move_elements(struct tensor *tensor)
{
    for (size_t i = 0; i < count_elements(tensor); i++)
        tensor->exact[i] *= 1 + uniform(-1, 1) * 6e-8;
}

/* How far each result moves when every input moves by half a unit in a float's last place: where
 * that is far, sums cancel, and no float kernel can do better. `seed` made the block. */
static void measure_rounding(const struct block *block, uint64_t seed, double moved_by[RESULTS])
{
    random_state = seed;
    struct block moved = make_block(&block->dims);
    omit_weights(&moved);
    move_elements(&moved.input);
    move_elements(&moved.grad_out);
    for (int i = 0; i < ALL_WEIGHTS; i++)
        move_elements(&moved.weight[i]);
    exact_block(&moved);
    for (int i = 0; i < RESULTS; i++)
        moved_by[i] = exact_distance(result(&moved, i), result(block, i));
    free_block(&moved);
}

static void check_result(const struct block *block, int i, double moved_by)
{
    const struct block_dims *dims = &block->dims;
    const char *name = i == 0 ? "out" : i == 1 ? "the input's gradient" : NAMES[i - 2];
    const double distance = relative_distance(result(block, i));
    CHECK(distance <= fmax(tolerance(result(block, i)), 10 * moved_by),
          "isa %d type %d, %td x %td x %td, %td channels, %td states, rank %td, %td taps, "
          "%td directions, reverse %d, tied %d: %s: relative distance %.3g, by rounding %.3g",
          dims->isa, dims->type, dims->batch, dims->length, dims->d_model, dims->channels,
          dims->states, dims->rank, dims->taps, dims->directions, dims->reverse, dims->tied, name,
          distance, moved_by);
}

static void test_one(const struct block_dims *dims)
{
    const uint64_t seed = random_state;
    double moved_by[RESULTS] = {0};
    struct block block = make_block(dims);
    omit_weights(&block);
    exact_block(&block);
    run_block(&block);
    if (dims->type == SCAN_FLOAT32)
        measure_rounding(&block, seed, moved_by);
    for (int i = 0; i < RESULTS; i++)
        if (i < 2 || is_used(&block, i - 2))
            check_result(&block, i, moved_by[i]);
    free_block(&block);
}

static void test_blocks(enum scan_type type, enum scan_isa isa)
{
    const int blocks = only_a_sample() ? 30 : 60;
    for (int i = 0; i < blocks; i++) {
        const struct block_dims dims = random_dims(type, isa);
        test_one(&dims);
    }
}

/* Lengths around the longest chunk's, and fewer steps than taps. */
static void test_lengths(enum scan_type type, enum scan_isa isa)
{
    const ptrdiff_t lengths[] = {1, 2, 63, 64, 65, 128, 130};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct block_dims dims = random_dims(type, isa);
        dims.batch = 2;
        dims.length = lengths[i];
        dims.taps = 4;
        dims.directions = 2;
        test_one(&dims);
    }
}

static bool same_bits(const struct tensor *one, const struct tensor *other)
{
    return memcmp(one->memory, other->memory, count_bytes(one)) == 0;
}

static void check_same_bits(const struct block *one, const struct block *other, const char *what)
{
    const int isa = one->dims.isa;
    CHECK(same_bits(&one->out, &other->out), "isa %d: out differs %s", isa, what);
    CHECK(same_bits(&one->grad_input, &other->grad_input),
          "isa %d: the input's gradient differs %s", isa, what);
    for (int j = 0; j < direction_start(one->dims.directions); j++) {
        CHECK(same_bits(&one->grad[j], &other->grad[j]), "isa %d: the gradient of %s differs %s",
              isa, NAMES[j], what);
    }
}

/* Results have the same bits for every number of threads. */
static void test_threads(enum scan_isa isa)
{
    for (int i = 0; i < 10; i++) {
        struct block_dims dims = random_dims(SCAN_FLOAT32, isa);
        const uint64_t seed = random_state;
        dims.threads = 1;
        struct block one = make_block(&dims);
        random_state = seed;
        dims.threads = 3;
        struct block many = make_block(&dims);
        run_block(&one);
        run_block(&many);
        check_same_bits(&one, &many, "by threads");
        free_block(&one);
        free_block(&many);
    }
}

/* The output has the same bits if nothing is saved for a backward pass. */
static void test_nothing_saved(enum scan_isa isa)
{
    for (int i = 0; i < 10; i++) {
        const struct block_dims dims = random_dims(SCAN_FLOAT32, isa);
        struct block block = make_block(&dims);
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

/* Results have the same bits in every floating-point mode of the caller. */
static void test_caller_modes(enum scan_isa isa)
{
    struct block_dims dims = random_dims(SCAN_FLOAT32, isa);
    const uint64_t seed = random_state;
    for (int i = 0; i < 2 * (CALLER_MODES - 1); i++) {
        struct block usual, other;
        struct block *const blocks[] = {&usual, &other};
        dims.tied = i % 2;
        for (int j = 0; j < 2; j++) {
            random_state = seed;
            *blocks[j] = make_block(&dims);
            set_caller_mode(j * (1 + i / 2));
            run_block(blocks[j]);
            set_caller_mode(USUAL_MODE);
        }
        check_same_bits(&usual, &other, "by the caller's floating-point mode");
        free_block(&usual);
        free_block(&other);
    }
}

static void test_mode(enum scan_isa isa)
{
    struct block_dims dims = random_dims(SCAN_FLOAT32, isa);
    dims.batch = dims.threads = 3;
    struct block block = make_block(&dims);
    void *saved = nan_memory(mamba_block_saved_bytes(&dims));
    CHECK_MODE_KEPT(run_forward(&block, saved), "forward pass", isa);
    CHECK_MODE_KEPT(run_backward(&block, saved), "backward pass", isa);
    free(saved);
    free_block(&block);
}

static const struct block_dims SMALL = {.batch = 2,
                                        .length = 3,
                                        .d_model = 4,
                                        .channels = 5,
                                        .states = 2,
                                        .rank = 1,
                                        .taps = 2,
                                        .directions = 2,
                                        .threads = 1,
                                        .type = SCAN_FLOAT32,
                                        .isa = SCAN_ISA_SCALAR,
                                        .norm_eps = 1e-5};

/* Both passes return `wanted`, and both sizes are 0. Nothing is read or written. */
static void check_dims_refused(const struct block_dims *dims, enum scan_status wanted,
                               const char *what)
{
    const struct block_weights weights = {.norm = NULL};
    const struct block_gradients grads = {.norm = NULL};
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
    struct block_dims dims = SMALL;
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
    dims.isa = 99;
    check_dims_refused(&dims, SCAN_ERROR_ISA, "isa 99");
    dims = SMALL;
    dims.type = 7;
    check_dims_refused(&dims, SCAN_ERROR_ISA, "type 7");
}

static enum scan_status call(const struct block *block, const struct block_weights *weights,
                             const struct block_gradients *grads, void *const buffers[5])
{
    if (!grads)
        return mamba_block_forward(&block->dims, weights, buffers[0], buffers[1], NULL, buffers[2]);
    return mamba_block_backward(&block->dims, weights, buffers[0], buffers[1], buffers[2],
                                buffers[3], grads, buffers[4]);
}

/* May a direction do without its weight i? */
static bool is_optional(int i)
{
    return i == CONV_BIAS || i == DT_BIAS || i == SKIP;
}

/* Leave out each required weight in turn, and the memory of each gradient. */
static void test_missing_weights(void)
{
    struct block block = make_block(&SMALL);
    char memory[1];
    void *const buffers[5] = {memory, memory, memory, memory, memory};
    for (int i = 0; i < ALL_WEIGHTS; i++) {
        const int within = (i - SHARED_WEIGHTS) % DIRECTION_WEIGHTS;
        const struct block_weights whole = weights_of(&block);
        block.given[i] = false;
        const struct block_weights weights = weights_of(&block);
        const struct block_gradients grads = gradients_of(&block);
        block.given[i] = true;
        CHECK(call(&block, &whole, &grads, buffers) == SCAN_ERROR_NULL, "no gradient of %s",
              NAMES[i]);
        if (i == NORM || (i >= SHARED_WEIGHTS && is_optional(within)))
            continue;
        const struct block_gradients all = gradients_of(&block);
        CHECK(call(&block, &weights, NULL, buffers) == SCAN_ERROR_NULL, "no %s", NAMES[i]);
        CHECK(call(&block, &weights, &all, buffers) == SCAN_ERROR_NULL, "no %s", NAMES[i]);
    }
    free_block(&block);
}

static void test_missing_buffers(void)
{
    struct block block = make_block(&SMALL);
    const struct block_weights weights = weights_of(&block);
    const struct block_gradients grads = gradients_of(&block);
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
    for (enum scan_isa isa = SCAN_ISA_SCALAR; isa <= SCAN_ISA_AVX512; isa++) {
        if (!mamba_scan_isa_works(isa))
            continue;
        printf("instruction set %d\n", (int)isa);
        test_blocks(SCAN_FLOAT32, isa);
        test_lengths(SCAN_FLOAT32, isa);
        test_threads(isa);
        test_nothing_saved(isa);
        test_mode(isa);
        test_caller_modes(isa);
    }
    test_blocks(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    test_lengths(SCAN_FLOAT64, SCAN_ISA_SCALAR);
    test_refused_dims();
    test_missing_weights();
    test_missing_buffers();
    return check_summary();
}
