/* Compares the forward pass with a second one, written in double precision straight from the paper
 * and docs/format.md, with none of the engine's code. Also checks the promises of mamba.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "check.h"
#include "tiny_model.h"

/* ---- the reference ------------------------------------------------------------------------- */

/* Memory of all its arrays, freed at once. */
static double pool_memory[1 << 21];
static size_t pool_used;

static double *array(size_t n)
{
    double *result = pool_memory + pool_used;
    pool_used += n;
    if (pool_used > sizeof pool_memory / sizeof *pool_memory)
        abort();
    memset(result, 0, n * sizeof *result);
    return result;
}

/* Reads tensors in file order, into plain arrays without padding. */
struct reader {
    const uint8_t *at;
};

static double next_float(struct reader *reader)
{
    float value;
    memcpy(&value, reader->at, sizeof value);
    reader->at += sizeof value;
    return value;
}

/* [rows, n] */
static double *read_table(struct reader *reader, size_t rows, size_t n)
{
    double *table = array(rows * n);
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < (n + 15) / 16 * 16; i++) {
            double value = next_float(reader);
            if (i < n)
                table[row * n + i] = value;
        }
    return table;
}

/* [out, in] */
static double *read_matrix(struct reader *reader, size_t out, size_t in)
{
    double *matrix = array(out * in);
    for (size_t panel = 0; panel < (out + 15) / 16; panel++)
        for (size_t i = 0; i < in; i++)
            for (size_t lane = 0; lane < 16; lane++) {
                double value = next_float(reader);
                if (panel * 16 + lane < out)
                    matrix[(panel * 16 + lane) * in + i] = value;
            }
    return matrix;
}

/* [rows, out] = x [rows, in] times the transposed matrix [out, in], plus bias [out] or NULL. */
static double *linear(const double *x, const double *matrix, const double *bias, size_t rows,
                      size_t in, size_t out)
{
    double *y = array(rows * out);
    for (size_t row = 0; row < rows; row++)
        for (size_t o = 0; o < out; o++) {
            double sum = bias ? bias[o] : 0.0;
            for (size_t i = 0; i < in; i++)
                sum += matrix[o * in + i] * x[row * in + i];
            y[row * out + o] = sum;
        }
    return y;
}

static double silu(double x)
{
    return x / (1.0 + exp(-x));
}

static double softplus(double x)
{
    return x > 0.0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static double *rms(const double *x, size_t rows, size_t n, double eps)
{
    double *y = array(rows * n);
    for (size_t row = 0; row < rows; row++) {
        double sum = 0.0;
        for (size_t i = 0; i < n; i++)
            sum += x[row * n + i] * x[row * n + i];
        for (size_t i = 0; i < n; i++)
            y[row * n + i] = x[row * n + i] / sqrt(sum / (double)n + eps);
    }
    return y;
}

static double *reversed(const double *x, size_t rows, size_t n)
{
    double *y = array(rows * n);
    for (size_t row = 0; row < rows; row++)
        memcpy(y + row * n, x + (rows - 1 - row) * n, n * sizeof *y);
    return y;
}

/* [columns, rows, n] from x [rows, columns, n] */
static double *transposed(const double *x, size_t rows, size_t columns, size_t n)
{
    double *y = array(rows * columns * n);
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++)
            memcpy(y + (column * rows + row) * n, x + (row * columns + column) * n, n * sizeof *y);
    return y;
}

/* Returns [ceil(h/stride) * ceil(w/stride), out] for in [h, w, channels]; reads the weights. */
static double *conv_3x3(struct reader *reader, const double *in, size_t h, size_t w,
                        size_t channels, size_t out, size_t stride)
{
    const double *weight = read_matrix(reader, out, 9 * channels);
    const double *bias = read_table(reader, 1, out);
    const size_t out_h = (h + stride - 1) / stride, out_w = (w + stride - 1) / stride;
    double *y = array(out_h * out_w * out);
    for (size_t row = 0; row < out_h; row++)
        for (size_t column = 0; column < out_w; column++)
            for (size_t o = 0; o < out; o++) {
                double sum = bias[o];
                for (int ky = 0; ky < 3; ky++)
                    for (int kx = 0; kx < 3; kx++) {
                        const long py = (long)(stride * row) + ky - 1,
                                   px = (long)(stride * column) + kx - 1;
                        if (py < 0 || py >= (long)h || px < 0 || px >= (long)w)
                            continue;
                        for (size_t c = 0; c < channels; c++)
                            sum += weight[(o * 9 + (size_t)(ky * 3 + kx)) * channels + c] *
                                   in[((size_t)py * w + (size_t)px) * channels + c];
                    }
                y[(row * out_w + column) * out + o] = sum;
            }
    return y;
}

static double *all_silu(double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = silu(x[i]);
    return x;
}

/* [length, d_model] */
static double *reference_tokens(struct reader *reader, const mamba_info *m, const double *image)
{
    double *tokens;
    if (m->stem == 0) {
        const size_t ph = m->patch_height, pw = m->patch_width, across = m->width / pw;
        double *patches = array((size_t)m->height * m->width);
        for (size_t row = 0; row < m->height; row++)
            for (size_t column = 0; column < m->width; column++)
                patches[((row / ph) * across + column / pw) * ph * pw + row % ph * pw +
                        column % pw] = image[row * m->width + column];
        double *weight = read_matrix(reader, m->d_model, ph * pw);
        double *bias = read_table(reader, 1, m->d_model);
        tokens = linear(patches, weight, bias, m->length, ph * pw, m->d_model);
    } else {
        const size_t half_h = (m->height + 1) / 2, half_w = (m->width + 1) / 2, sw = m->stem_width;
        const size_t channels = m->stem == 2 ? (sw + 1) / 2 : 1;
        const double *in = image;
        if (m->stem == 2)
            in = all_silu(conv_3x3(reader, image, m->height, m->width, 1, channels, 1),
                          (size_t)m->height * m->width * channels);
        in = all_silu(conv_3x3(reader, in, m->height, m->width, channels, sw, 2),
                      half_h * half_w * sw);
        tokens = conv_3x3(reader, in, half_h, half_w, sw, m->d_model, 2);
    }
    if (m->pos_embed) {
        double *position = read_table(reader, m->length, m->d_model);
        for (size_t i = 0; i < (size_t)m->length * m->d_model; i++)
            tokens[i] += position[i];
    }
    return tokens;
}

/* One scan, first token first: returns y [length, d_inner] for xs and z of the same shape. */
static double *reference_scan(struct reader *reader, const mamba_info *m, const double *xs,
                              const double *z)
{
    const size_t L = m->length, Di = m->d_inner, N = m->d_state, R = m->dt_rank, K = m->d_conv;
    double *conv_weight = read_table(reader, K, Di), *conv_bias = read_table(reader, 1, Di);
    double *x_proj = read_matrix(reader, R + 2 * N, Di), *dt_weight = read_matrix(reader, Di, R);
    double *dt_bias = read_table(reader, 1, Di);
    double *A = read_table(reader, m->tied_a ? 1 : N, Di), *D = read_table(reader, 1, Di);

    double *u = array(L * Di), *y = array(L * Di), *dt = array(L * R);
    for (size_t t = 0; t < L; t++)
        for (size_t d = 0; d < Di; d++) {
            double sum = conv_bias[d];
            for (size_t k = 0; k < K; k++)
                if (t + k + 1 >= K)
                    sum += conv_weight[k * Di + d] * xs[(t + k + 1 - K) * Di + d];
            u[t * Di + d] = silu(sum);
        }
    double *dbc = linear(u, x_proj, NULL, L, Di, R + 2 * N);
    for (size_t t = 0; t < L; t++)
        memcpy(dt + t * R, dbc + t * (R + 2 * N), R * sizeof *dt);
    double *delta = linear(dt, dt_weight, dt_bias, L, R, Di);
    for (size_t d = 0; d < Di; d++) {
        double *h = array(N);
        for (size_t t = 0; t < L; t++) {
            const double step = softplus(delta[t * Di + d]), input = u[t * Di + d];
            const double *B = dbc + t * (R + 2 * N) + R, *C = B + N;
            double sum = D[d] * input;
            for (size_t n = 0; n < N; n++) {
                double a = m->tied_a ? (double)(n + 1) * A[d] : A[n * Di + d];
                h[n] = exp2(step * a) * h[n] + step * input * B[n];
                sum += C[n] * h[n];
            }
            y[t * Di + d] = sum * silu(z[t * Di + d]);
        }
    }
    return y;
}

/* A 3x3 convolution of each channel of x [rows, columns, n]; reads the weights. */
static double *reference_local(struct reader *reader, const double *x, size_t rows, size_t columns,
                               size_t n)
{
    const double *weight = read_table(reader, 9, n), *bias = read_table(reader, 1, n);
    double *y = array(rows * columns * n);
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++)
            for (size_t i = 0; i < n; i++) {
                double sum = bias[i];
                for (int ky = -1; ky <= 1; ky++)
                    for (int kx = -1; kx <= 1; kx++) {
                        const long py = (long)row + ky, px = (long)column + kx;
                        if (py >= 0 && py < (long)rows && px >= 0 && px < (long)columns)
                            sum += weight[(size_t)(3 * ky + kx + 4) * n + i] *
                                   x[((size_t)py * columns + (size_t)px) * n + i];
                    }
                y[(row * columns + column) * n + i] = sum;
            }
    return y;
}

static void reference_layer(struct reader *reader, const mamba_info *m, double *x, size_t layer)
{
    const size_t L = m->length, Di = m->d_inner, Dm = m->d_model;
    const size_t rows = m->stem != 0 ? (m->height + 3) / 4 : m->height / m->patch_height;
    const bool columns = m->direction == 3 && layer % 2 == 1;
    if (m->local_conv)
        memcpy(x, reference_local(reader, x, rows, L / rows, Dm), L * Dm * sizeof *x);
    double *weight_x = read_matrix(reader, Di, Dm), *weight_z = read_matrix(reader, Di, Dm);
    double *hidden =
        rms(columns ? transposed(x, rows, L / rows, Dm) : x, L, Dm, (double)m->norm_eps);
    double *xs = linear(hidden, weight_x, NULL, L, Dm, Di);
    double *z = linear(hidden, weight_z, NULL, L, Dm, Di);
    double *y = array(L * Di);
    for (int scan = 0; scan < (m->direction == 2 ? 2 : 1); scan++) {
        const bool reverse = scan == 1 || (m->direction == 1 && layer % 2 == 1) ||
                             (m->direction == 3 && layer % 4 >= 2);
        double *one = reference_scan(reader, m, reverse ? reversed(xs, L, Di) : xs,
                                     reverse ? reversed(z, L, Di) : z);
        one = reverse ? reversed(one, L, Di) : one;
        for (size_t i = 0; i < L * Di; i++)
            y[i] += one[i];
    }
    y = columns ? transposed(y, L / rows, rows, Di) : y;
    double *out = linear(y, read_matrix(reader, Dm, Di), NULL, L, Di, Dm);
    for (size_t i = 0; i < L * Dm; i++)
        x[i] += out[i];
}

/* Returns logits [n_classes] of the member whose tensors come next, for normalised pixels. */
static double *reference_member(struct reader *reader, const mamba_info *m, const double *image)
{
    const size_t L = m->length, Dm = m->d_model;
    double *q = array(Dm), *x = reference_tokens(reader, m, image);
    for (size_t layer = 0; layer < m->n_layers; layer++)
        reference_layer(reader, m, x, layer);
    double *normed = rms(x, L, Dm, (double)m->norm_eps);
    for (size_t t = 0; t < L; t++)
        for (size_t i = 0; i < Dm; i++)
            q[i] += m->pool == 0 ? normed[t * Dm + i] / (double)L
                                 : (t + 1 == L ? normed[t * Dm + i] : 0.0);
    double *head = read_matrix(reader, m->n_classes, Dm);
    double *bias = read_table(reader, 1, m->n_classes);
    return linear(q, head, bias, 1, Dm, m->n_classes);
}

/* Returns logits [n_classes] for pixels [height, width]. */
static double *reference(const struct tiny_model *tiny, const float *pixels)
{
    const mamba_info *m = &tiny->dims;
    const size_t n = (size_t)m->height * m->width;
    pool_used = 0;
    struct reader reader = {tiny->bytes + TINY_HEADER};
    double *image = array(n), *logits = array(m->n_classes);
    for (size_t i = 0; i < n; i++)
        image[i] = ((double)pixels[i] - (double)m->pixel_mean) / (double)m->pixel_std;
    for (size_t member = 0; member < m->members; member++) {
        const double *member_logits = reference_member(&reader, m, image);
        for (size_t i = 0; i < m->n_classes; i++)
            logits[i] += member_logits[i] / m->members;
    }
    CHECK(reader.at == tiny->bytes + tiny->size, "the reference read another size");
    return logits;
}

/* ---- tests --------------------------------------------------------------------------------- */

enum { MAX_CLASSES = 256, MAX_PIXELS = 1024 };

static void *must(void *memory)
{
    if (!memory)
        abort();
    return memory;
}

static void fill_pixels(uint8_t *pixels, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++)
        pixels[i] = (uint8_t)(fabsf(tiny_random(&seed)) * 255.0f);
}

static void forward_once(const mamba_model *model, const float *pixels, float *logits)
{
    const size_t bytes = mamba_context_bytes(model);
    void *arena = must(malloc(bytes));
    memset(arena, 0xFF, bytes); /* NaN: a read before the first write shows */
    mamba_context *context;
    CHECK(mamba_context_init(&context, model, arena, bytes, NULL) == MAMBA_OK, "init");
    CHECK(mamba_forward(context, pixels, logits) == MAMBA_OK, "forward");
    free(arena);
}

/* Returns dims for architecture `i` of 96: they vary with i, and some are odd. */
static mamba_info varied(uint32_t i)
{
    static const uint32_t states[] = {1, 8, 16}, inners[] = {3, 16, 29, 40, 64};
    static const uint32_t models[] = {5, 16, 17, 33, 1, 24}, classes[] = {2, 10, 17};
    static const uint32_t patches[][2] = {{1, 1}, {1, 9}, {7, 3}, {7, 9}};
    mamba_info dims = tiny_dims();
    dims.tied_a = i & 1;
    dims.pos_embed = i >> 1 & 1;
    dims.local_conv = (i / 5) & 1;
    dims.pool = i >> 2 & 1;
    dims.direction = i >> 3 & 3;
    dims.stem = i >> 5;
    dims.height = 7;
    dims.width = 9;
    dims.patch_height = dims.stem ? 0 : patches[i / 3 % 4][0];
    dims.patch_width = dims.stem ? 0 : patches[i / 3 % 4][1];
    dims.stem_width = dims.stem ? 1 + i % 19 : 0;
    dims.n_layers = dims.direction == 3 ? 2 + i % 4 : 1 + i % 3;
    dims.d_conv = 1 + (i / 2) % 4;
    dims.d_state = states[i % 3];
    dims.d_inner = inners[i % 5];
    dims.d_model = models[i / 2 % 6];
    /* The norm of a single value is nearly its sign: near 0 it enlarges rounding to 1 / sqrt(eps).
     */
    dims.norm_eps = dims.d_model == 1 ? 0.1f : dims.norm_eps;
    dims.dt_rank = 1 + i % 4;
    dims.n_classes = classes[i / 5 % 3];
    dims.members = i % 7 == 0 ? 3 : 1;
    return dims;
}

static void compare_with_reference(mamba_info dims, uint32_t seed)
{
    struct tiny_model tiny = tiny_build(dims, seed);
    mamba_model *model;
    mamba_error error;
    if (!CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message))
        return;
    float pixels[MAX_PIXELS], logits[MAX_CLASSES];
    uint32_t state = seed;
    for (size_t i = 0; i < (size_t)dims.height * dims.width; i++)
        pixels[i] = fabsf(tiny_random(&state));
    forward_once(model, pixels, logits);
    const double *expected = reference(&tiny, pixels);
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < dims.n_classes; i++) {
        difference += pow((double)logits[i] - expected[i], 2.0);
        size += pow(expected[i], 2.0);
    }
    CHECK(sqrt(difference / size) <= 1e-5, "architecture %u: relative difference %g", seed,
          sqrt(difference / size));
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void test_against_reference(void)
{
    for (uint32_t i = 0; i < 96; i++)
        for (uint32_t round = 0; round < 3; round++)
            compare_with_reference(varied(i), i + 96 * round);
    mamba_info wide = varied(0); /* limits that the small models do not reach */
    wide.d_conv = 16;
    wide.d_state = 256;
    wide.n_classes = 256;
    wide.dt_rank = 20;
    compare_with_reference(wide, 1000);
    mamba_info large = varied(2); /* too large to be folded */
    large.n_layers = 1;
    large.local_conv = 0;
    large.patch_height = large.patch_width = 1;
    large.d_model = 24;
    large.d_inner = 2064;
    compare_with_reference(large, 1001);
}

/* A batch of any size on any number of threads gives the bits of single calls. */
static void test_batches(unsigned number)
{
    enum { N = 11 };
    mamba_info dims = varied(number);
    struct tiny_model tiny = tiny_build(dims, 7);
    const size_t pixels = (size_t)dims.height * dims.width, classes = dims.n_classes;
    mamba_model *model;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    uint8_t bytes[N * MAX_PIXELS];
    float floats[N * MAX_PIXELS], single[N * MAX_CLASSES], batch[N * MAX_CLASSES];
    fill_pixels(bytes, N * pixels, 3);
    for (size_t i = 0; i < N * pixels; i++)
        floats[i] = (float)bytes[i] / 255.0f;
    for (size_t i = 0; i < N; i++)
        forward_once(model, floats + i * pixels, single + i * classes);
    for (int threads = 1; threads <= 5; threads++) {
        const size_t arena_bytes = mamba_batch_bytes(model, threads);
        void *arena = must(malloc(arena_bytes));
        for (size_t n = 0; n <= N; n++) {
            const size_t result = n * classes * sizeof(float);
            memset(batch, 0xFF, sizeof batch);
            CHECK(mamba_forward_batch_u8(model, arena, arena_bytes, threads, bytes, n, batch,
                                         NULL) == MAMBA_OK &&
                      memcmp(batch, single, result) == 0,
                  "u8, %zu images on %d threads", n, threads);
            memset(batch, 0xFF, sizeof batch);
            CHECK(mamba_forward_batch(model, arena, arena_bytes, threads, floats, n, batch, NULL) ==
                          MAMBA_OK &&
                      memcmp(batch, single, result) == 0,
                  "float, %zu images on %d threads", n, threads);
        }
        free(arena);
    }
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* An arena may begin anywhere, and the promised bytes are enough (the sanitizers watch). */
static void test_arena(void)
{
    mamba_info dims = varied(21);
    struct tiny_model tiny = tiny_build(dims, 9);
    mamba_model *model;
    mamba_error error;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    const size_t bytes = mamba_context_bytes(model);
    float pixels[MAX_PIXELS] = {0.5f}, expected[MAX_CLASSES], logits[MAX_CLASSES];
    forward_once(model, pixels, expected);
    for (size_t offset = 0; offset < 64; offset++) {
        char *memory = must(malloc(offset + bytes));
        mamba_context *context;
        CHECK(mamba_context_init(&context, model, memory + offset, bytes, NULL) == MAMBA_OK,
              "offset %zu", offset);
        mamba_forward(context, pixels, logits);
        CHECK(memcmp(logits, expected, dims.n_classes * sizeof *logits) == 0, "offset %zu", offset);
        CHECK(mamba_context_init(&context, model, memory + offset, bytes - 1, &error) ==
                      MAMBA_ERR_ARGUMENT &&
                  !context && strstr(error.message, "arena_bytes"),
              "too small: %s", error.message);
        free(memory);
    }
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void test_arguments(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 10);
    mamba_model *model;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    const size_t bytes = mamba_batch_bytes(model, 1);
    char *arena = must(malloc(bytes));
    float pixels[24] = {0}, logits[3];
    mamba_context *context;
    mamba_error error;
    CHECK(mamba_context_init(NULL, model, arena, bytes, NULL) == MAMBA_ERR_ARGUMENT, "out");
    CHECK(mamba_context_init(&context, NULL, arena, bytes, NULL) == MAMBA_ERR_ARGUMENT, "model");
    CHECK(mamba_context_init(&context, model, NULL, bytes, NULL) == MAMBA_ERR_ARGUMENT, "arena");
    CHECK(mamba_context_init(&context, model, arena, bytes, NULL) == MAMBA_OK, "good");
    CHECK(mamba_forward(NULL, pixels, logits) == MAMBA_ERR_ARGUMENT, "context");
    CHECK(mamba_forward(context, NULL, logits) == MAMBA_ERR_ARGUMENT, "pixels");
    CHECK(mamba_forward_u8(context, NULL, logits) == MAMBA_ERR_ARGUMENT, "pixels");
    CHECK(mamba_forward(context, pixels, NULL) == MAMBA_ERR_ARGUMENT, "logits");
    CHECK(mamba_batch_bytes(model, 0) == 0 && mamba_batch_bytes(model, -1) == 0 &&
              mamba_batch_bytes(model, 1025) == 0,
          "threads");
    CHECK(mamba_forward_batch(model, arena, bytes, 0, pixels, 1, logits, &error) ==
                  MAMBA_ERR_ARGUMENT &&
              strstr(error.message, "threads"),
          "%s", error.message);
    CHECK(mamba_forward_batch(model, arena, bytes - 1, 1, pixels, 1, logits, &error) ==
                  MAMBA_ERR_ARGUMENT &&
              strstr(error.message, "arena_bytes"),
          "%s", error.message);
    CHECK(mamba_forward_batch(model, arena, bytes, 1, NULL, 1, logits, &error) ==
              MAMBA_ERR_ARGUMENT,
          "images");
    CHECK(mamba_max_threads() >= 1 && mamba_version()[0], "threads, version");
    free(arena);
    mamba_model_close(model);
    tiny_free(&tiny);
}

#if defined(__SSE__)
/* A trace, called from inside a pass. */
static void check_mode(void *calls, const char *name, int layer, const float *data, size_t rows,
                       size_t cols, size_t row_stride)
{
    const unsigned flush_and_zero = 0x8040u;
    ++*(int *)calls;
    CHECK((_mm_getcsr() & flush_and_zero) == flush_and_zero, "%s, layer %d: denormals count", name,
          layer);
    (void)data, (void)rows, (void)cols, (void)row_stride;
}

/* Denormals are zero during a pass, which restores the caller's floating-point mode. */
static void test_denormals(void)
{
    const unsigned original = _mm_getcsr();
    _mm_setcsr(original | 0x8040u);
    const bool kept = (_mm_getcsr() & 0x8040u) == 0x8040u;
    _mm_setcsr(original);
    if (!kept) { /* valgrind has no such mode */
        printf("denormals: not tested here\n");
        return;
    }
    struct tiny_model tiny = tiny_build(tiny_dims(), 11);
    mamba_model *model;
    mamba_context *context;
    float black[24] = {0}, logits[3];
    int calls = 0;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    const size_t bytes = mamba_context_bytes(model);
    void *arena = must(malloc(bytes));
    CHECK(mamba_context_init(&context, model, arena, bytes, NULL) == MAMBA_OK, "init");
    mamba_set_trace(context, check_mode, &calls);
    const unsigned control_bits = ~0x3Fu; /* the rest are sticky exception flags */
    const unsigned before = _mm_getcsr() & control_bits;
    mamba_forward(context, black, logits);
    CHECK((_mm_getcsr() & control_bits) == before, "MXCSR is %X, was %X", _mm_getcsr(), before);
    CHECK(calls == 17, "%d trace calls", calls); /* 3, and 7 per layer */
    free(arena);
    mamba_model_close(model);
    tiny_free(&tiny);
}
#endif

/* Pixels of a valid model can still drive every activation function to its limits. */
static void test_extremes(void)
{
    mamba_info dims = varied(16);
    dims.pixel_std = 1e-6f;
    struct tiny_model tiny = tiny_build(dims, 12);
    mamba_model *model;
    float pixels[MAX_PIXELS], logits[MAX_CLASSES];
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    for (size_t i = 0; i < MAX_PIXELS; i++)
        pixels[i] = (float)(i % 2);
    forward_once(model, pixels, logits);
    for (size_t i = 0; i < dims.n_classes; i++)
        CHECK(isfinite(logits[i]), "logit %zu is %g", i, (double)logits[i]);
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void test_softmax(void)
{
    float x[] = {1000.0f, 999.0f, -1000.0f}, p[3];
    mamba_softmax(x, p, 3);
    CHECK(fabsf(p[0] - 0.731058579f) < 1e-6f && fabsf(p[1] - 0.268941421f) < 1e-6f && p[2] == 0.0f,
          "got %g %g %g", (double)p[0], (double)p[1], (double)p[2]);
    mamba_softmax(x, x, 3);
    CHECK(memcmp(x, p, sizeof x) == 0, "in place");
    mamba_softmax(x, x, 0);
}

int main(void)
{
    test_against_reference();
    for (unsigned number = 0; number < 96; number += 11) /* each stem, direction and form of A */
        test_batches(number);
    test_arena();
    test_arguments();
#if defined(__SSE__)
    test_denormals();
#endif
    test_extremes();
    test_softmax();
    return check_summary();
}
