#include "reference.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

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

/* A sum, and the sum of the magnitudes of its terms. */
struct sum {
    double value, terms;
};

static void add(struct sum *sum, double term)
{
    sum->value += term;
    sum->terms += fabs(term);
}

static struct magnitudes magnitudes;

static void note(double *largest, double value)
{
    if (value > *largest) /* faster than fmax, which also passes over NaN */
        *largest = value;
}

static double total(struct sum sum)
{
    note(&magnitudes.value, fabs(sum.value));
    note(&magnitudes.terms, sum.terms);
    return sum.value;
}

/* Returns `value`, after noting its magnitude. */
static double noted(double value)
{
    return total((struct sum){value, fabs(value)});
}

/* Reads tensors in file order, into plain arrays without padding. */
struct reader {
    const uint8_t *at;
    bool int8; /* weights */
};

static double next_float(struct reader *reader)
{
    float value;
    memcpy(&value, reader->at, sizeof value);
    reader->at += sizeof value;
    return value;
}

/* [n] */
static double *read_vector(struct reader *reader, size_t n)
{
    double *vector = array(n);
    for (size_t i = 0; i < (reader->int8 ? n : (n + 15) / 16 * 16); i++) {
        double value = next_float(reader);
        if (i < n)
            vector[i] = value;
    }
    return vector;
}

/* [rows, n] of int8, each row after its scale */
static double *read_rows(struct reader *reader, size_t rows, size_t n)
{
    double *table = array(rows * n);
    for (size_t row = 0; row < rows; row++) {
        const double scale = next_float(reader);
        for (size_t i = 0; i < n; i++) {
            const int byte = *reader->at++;
            table[row * n + i] = (double)(float)(scale * (byte < 128 ? byte : byte - 256));
        }
    }
    return table;
}

/* [rows, n] */
static double *read_table(struct reader *reader, size_t rows, size_t n)
{
    if (reader->int8)
        return read_rows(reader, rows, n);
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
    if (reader->int8)
        return read_rows(reader, out, in);
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
            struct sum sum = {0.0, 0.0};
            add(&sum, bias ? bias[o] : 0.0);
            for (size_t i = 0; i < in; i++)
                add(&sum, matrix[o * in + i] * x[row * in + i]);
            y[row * out + o] = total(sum);
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
            y[row * n + i] = x[row * n + i] / sqrt(noted(sum) / (double)n + eps);
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
    const double *bias = read_vector(reader, out);
    const size_t out_h = (h + stride - 1) / stride, out_w = (w + stride - 1) / stride;
    double *y = array(out_h * out_w * out);
    for (size_t row = 0; row < out_h; row++)
        for (size_t column = 0; column < out_w; column++)
            for (size_t o = 0; o < out; o++) {
                struct sum sum = {0.0, 0.0};
                add(&sum, bias[o]);
                for (int ky = 0; ky < 3; ky++)
                    for (int kx = 0; kx < 3; kx++) {
                        const long py = (long)(stride * row) + ky - 1,
                                   px = (long)(stride * column) + kx - 1;
                        if (py < 0 || py >= (long)h || px < 0 || px >= (long)w)
                            continue;
                        for (size_t c = 0; c < channels; c++)
                            add(&sum, weight[(o * 9 + (size_t)(ky * 3 + kx)) * channels + c] *
                                          in[((size_t)py * w + (size_t)px) * channels + c]);
                    }
                y[(row * out_w + column) * out + o] = total(sum);
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
        const size_t n = m->channels;
        double *patches = array((size_t)m->height * m->width * n);
        for (size_t row = 0; row < m->height; row++)
            for (size_t column = 0; column < m->width; column++)
                for (size_t c = 0; c < n; c++)
                    patches[(((row / ph) * across + column / pw) * ph * pw + row % ph * pw +
                             column % pw) *
                                n +
                            c] = image[(row * m->width + column) * n + c];
        double *weight = read_matrix(reader, m->d_model, ph * pw * n);
        double *bias = read_vector(reader, m->d_model);
        tokens = linear(patches, weight, bias, m->length, ph * pw * n, m->d_model);
    } else {
        const size_t half_h = (m->height + 1) / 2, half_w = (m->width + 1) / 2, sw = m->stem_width;
        const size_t channels = m->stem == 2 ? (sw + 1) / 2 : m->channels;
        const double *in = image;
        if (m->stem == 2)
            in = all_silu(conv_3x3(reader, image, m->height, m->width, m->channels, channels, 1),
                          (size_t)m->height * m->width * channels);
        in = all_silu(conv_3x3(reader, in, m->height, m->width, channels, sw, 2),
                      half_h * half_w * sw);
        tokens = conv_3x3(reader, in, half_h, half_w, sw, m->d_model, 2);
    }
    if (m->pos_embed) {
        double *position = read_table(reader, m->length, m->d_model);
        for (size_t i = 0; i < (size_t)m->length * m->d_model; i++)
            tokens[i] = noted(tokens[i] + position[i]);
    }
    return tokens;
}

/* One scan, first token first: returns y [length, d_inner] for xs and z of the same shape. */
static double *reference_scan(struct reader *reader, const mamba_info *m, const double *xs,
                              const double *z)
{
    const size_t L = m->length, Di = m->d_inner, N = m->d_state, R = m->dt_rank, K = m->d_conv;
    double *conv_weight = read_table(reader, K, Di), *conv_bias = read_vector(reader, Di);
    double *x_proj = read_matrix(reader, R + 2 * N, Di), *dt_weight = read_matrix(reader, Di, R);
    double *dt_bias = read_vector(reader, Di);
    double *A = m->tied_a ? read_vector(reader, Di) : read_table(reader, N, Di),
           *D = read_vector(reader, Di);

    double *u = array(L * Di), *y = array(L * Di), *dt = array(L * R);
    for (size_t t = 0; t < L; t++)
        for (size_t d = 0; d < Di; d++) {
            struct sum sum = {0.0, 0.0};
            add(&sum, conv_bias[d]);
            for (size_t k = 0; k < K; k++)
                if (t + k + 1 >= K)
                    add(&sum, conv_weight[k * Di + d] * xs[(t + k + 1 - K) * Di + d]);
            u[t * Di + d] = silu(total(sum));
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
            struct sum sum = {0.0, 0.0};
            add(&sum, D[d] * input);
            for (size_t n = 0; n < N; n++) {
                const double a = m->tied_a ? (double)(n + 1) * A[d] : A[n * Di + d];
                struct sum state = {0.0, 0.0};
                add(&state, noted(exp2(step * a)) * h[n]);
                add(&state, noted(step * input) * B[n]);
                h[n] = total(state);
                add(&sum, C[n] * h[n]);
            }
            y[t * Di + d] = noted(total(sum) * silu(z[t * Di + d]));
        }
    }
    return y;
}

/* A 3x3 convolution of each channel of x [rows, columns, n]; reads the weights. */
static double *reference_local(struct reader *reader, const double *x, size_t rows, size_t columns,
                               size_t n)
{
    const double *weight = read_table(reader, 9, n), *bias = read_vector(reader, n);
    double *y = array(rows * columns * n);
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++)
            for (size_t i = 0; i < n; i++) {
                struct sum sum = {0.0, 0.0};
                add(&sum, bias[i]);
                for (int ky = -1; ky <= 1; ky++)
                    for (int kx = -1; kx <= 1; kx++) {
                        const long py = (long)row + ky, px = (long)column + kx;
                        if (py >= 0 && py < (long)rows && px >= 0 && px < (long)columns)
                            add(&sum, weight[(size_t)(3 * ky + kx + 4) * n + i] *
                                          x[((size_t)py * columns + (size_t)px) * n + i]);
                    }
                y[(row * columns + column) * n + i] = total(sum);
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
            y[i] = noted(y[i] + one[i]);
    }
    y = columns ? transposed(y, L / rows, rows, Di) : y;
    double *out = linear(y, read_matrix(reader, Dm, Di), NULL, L, Di, Dm);
    for (size_t i = 0; i < L * Dm; i++)
        x[i] = noted(x[i] + out[i]);
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
    double *bias = read_vector(reader, m->n_classes);
    return linear(q, head, bias, 1, Dm, m->n_classes);
}

const double *reference(const struct tiny_model *tiny, const float *pixels,
                        struct magnitudes *largest)
{
    const mamba_info *m = &tiny->dims;
    const size_t n = (size_t)m->height * m->width * m->channels;
    pool_used = 0;
    magnitudes = (struct magnitudes){0.0, 0.0};
    struct reader reader = {tiny->bytes + tiny->tensors, m->weight_type == 1};
    double *image = array(n), *logits = array(m->n_classes);
    for (size_t i = 0; i < n; i++)
        image[i] = ((double)pixels[i] - (double)m->pixel_mean) / (double)m->pixel_std;
    for (size_t member = 0; member < m->members; member++) {
        const double *member_logits = reference_member(&reader, tiny_member(tiny, member), image);
        for (size_t i = 0; i < m->n_classes; i++)
            logits[i] = noted(logits[i] + member_logits[i]);
    }
    for (size_t i = 0; i < m->n_classes; i++)
        logits[i] /= m->members;
    if (reader.at != tiny->bytes + tiny->size)
        abort(); /* read another size */
    if (largest)
        *largest = magnitudes;
    return logits;
}

mamba_info varied(uint32_t i)
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
