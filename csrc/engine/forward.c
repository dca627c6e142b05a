/* The forward pass, top to bottom as in docs/format.md and the paper (Gu and Dao 2023, "Mamba:
 * Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752). */
#include <float.h>
#include <math.h>
#include <string.h>

#include "context.h"
#include "copy.h"
#include "denormals.h"
#include "finite.h"
#include "local_conv.h"
#include "stem.h"

/* Passes rows to the trace, if there is one. */
static void trace_rows(const struct mamba_context *context, const char *name, int layer,
                       const float *data, size_t rows, size_t cols, size_t row_stride)
{
    if (context->trace)
        context->trace(context->trace_user, name, layer, data, rows, cols, row_stride);
}

/* x = tokens of the image, plus pos_embed. */
static void embed(struct mamba_context *context)
{
    const struct mamba_info *info = &context->member->info;
    const float *pos_embed = context->member->pos_embed;
    mamba_stem(context);
    if (pos_embed)
        context->model->kernels->add(context->x, pos_embed, info->length * context->d_model);
    trace_rows(context, "tokens", -1, context->x, info->length, info->d_model, context->d_model);
}

/* ---- layers ------------------------------------------------------------------------------ */

/* One scan of a layer, from xs and z to y [length, d_inner]: the convolution, delta, B and C that
 * the input itself selects, and the recurrence. */
static void mix_sequence(struct mamba_context *context, float *y, const struct scan_weights *scan,
                         bool reverse, int layer, const char names[4][9])
{
    const struct mamba_kernels *kernels = context->model->kernels;
    const struct mamba_info *info = &context->member->info;
    const size_t length = info->length, d_inner = context->d_inner, x_width = context->x_width;
    const size_t dt_rank = info->dt_rank, d_state = info->d_state;
    const struct sequence sequence = {length, d_inner, reverse};

    kernels->conv_silu(context->u, context->xs, scan->conv_weight, scan->conv_bias, info->d_conv,
                       sequence);
    trace_rows(context, names[0], layer, context->u, length, info->d_inner, d_inner);

    kernels->matmul(context->x_dbc, x_width, context->u, d_inner, length, &scan->x_proj);
    trace_rows(context, names[1], layer, context->x_dbc, length, scan->x_proj.out, x_width);

    kernels->matmul(context->delta, d_inner, context->x_dbc, x_width, length, &scan->dt_proj);
    kernels->softplus(context->delta, length * d_inner);
    trace_rows(context, names[2], layer, context->delta, length, info->d_inner, d_inner);

    const struct scan_inputs inputs = {
        .u = context->u,
        .z = context->z,
        .delta = context->delta,
        .b = context->x_dbc + dt_rank,
        .c = context->x_dbc + dt_rank + d_state,
        .bc_stride = x_width,
        .a = scan->a,
        .d = scan->d,
        .d_state = d_state,
        .tied = info->tied_a != 0,
    };
    kernels->scan(y, &inputs, context->state, sequence);
    trace_rows(context, names[3], layer, y, length, info->d_inner, d_inner);
}

/* y = the layer's scan, or the sum of its two. */
static void mix(struct mamba_context *context, const struct layer_weights *layer, int index)
{
    static const char names[4][9] = {"conv", "x_proj", "delta", "scan"};
    static const char names_b[4][9] = {"conv_b", "x_proj_b", "delta_b", "scan_b"};
    const struct mamba_info *info = &context->member->info;
    const bool reverse = (info->direction == DIRECTION_ALTERNATE && index % 2 == 1) ||
                         (info->direction == DIRECTION_CROSS && index % 4 >= 2);
    mix_sequence(context, context->y, &layer->scan[0], reverse, index, names);
    if (info->direction == DIRECTION_BIDIRECTIONAL) {
        mix_sequence(context, context->y_b, &layer->scan[1], true, index, names_b);
        context->model->kernels->add(context->y, context->y_b, info->length * context->d_inner);
    }
}

/* Returns 1 / rms of x [n] for numbers so small that their squares count as zero in float. */
static float scale_of_small(const float *x, size_t n, float eps)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return (float)(1.0 / sqrt(sum / (double)n + (double)eps));
}

/* scale [rows] = 1 / rms of rows of x that are x_stride apart. A denormal norm_eps would count as
 * zero, and the scale of a row of zeros would be infinite. */
static void find_scale(struct mamba_context *context, const float *x, size_t x_stride, size_t rows)
{
    const struct mamba_info *info = &context->member->info;
    const float eps = info->norm_eps > FLT_MIN ? info->norm_eps : FLT_MIN;
    context->model->kernels->rms_scale(context->scale, x, x_stride, rows, info->d_model, eps);
    for (size_t r = 0; r < rows; r++)
        if (context->scale[r] > 0x1p45f)
            context->scale[r] = scale_of_small(x + r * x_stride, info->d_model, eps);
}

/* hidden [rows, d_model] = rms(x) of rows that are x_stride apart. */
static void normalise(struct mamba_context *context, float *hidden, const float *x, size_t x_stride,
                      size_t rows)
{
    const size_t stride = context->d_model;
    find_scale(context, x, x_stride, rows);
    context->model->kernels->scale_rows(hidden, stride, x, x_stride, context->scale, rows, stride);
}

/* hidden = rms(x) of all tokens, column by column of a grid of `columns` columns. With one column
 * that is token order. */
static void normalise_columns(struct mamba_context *context, size_t columns)
{
    const size_t stride = context->d_model, rows = context->member->info.length / columns;
    for (size_t i = 0; i < columns; i++)
        normalise(context, context->hidden + i * rows * stride, context->x + i * stride,
                  columns * stride, rows);
}

/* Returns y [length, d_inner] with its rows in image order. Uses u, which the scan no longer
 * needs. */
static const float *in_image_order(struct mamba_context *context, size_t columns)
{
    const size_t rows = context->member->info.length / columns, stride = context->d_inner;
    if (columns == 1)
        return context->y;
    for (size_t i = 0; i < columns; i++)
        mamba_copy_rows(context->u + i * stride, columns * stride, context->y + i * rows * stride,
                        stride, stride, rows);
    return context->u;
}

/* xs, z = in_proj(rms(x)). A folded layer multiplies the pixels, and applies the norm's scale to
 * the result. */
static void project(struct mamba_context *context, const struct layer_weights *layer,
                    size_t columns, bool folded)
{
    const struct mamba_kernels *kernels = context->model->kernels;
    const size_t length = context->member->info.length, stride = context->d_inner;
    const float *x = context->hidden;
    size_t x_stride = context->d_model;
    if (folded) {
        x = context->im2col;
        x_stride = mamba_im2col_stride(layer->in_proj[0].in);
        find_scale(context, context->x, context->d_model, length);
    } else {
        normalise_columns(context, columns);
    }
    for (int i = 0; i < 2; i++) {
        float *out = i == 0 ? context->xs : context->z;
        kernels->matmul(out, stride, x, x_stride, length, &layer->in_proj[i]);
        if (folded)
            kernels->scale_rows(out, stride, out, stride, context->scale, length, stride);
    }
}

/* x = x + out_proj(mix(in_proj(rms(x)))), after local_conv if the model has it. */
static void run_layer(struct mamba_context *context, int index)
{
    const struct mamba_info *info = &context->member->info;
    const struct layer_weights *layer = &context->member->layers[index];
    const size_t length = info->length, d_model = info->d_model, d_inner = info->d_inner;
    const bool by_columns = info->direction == DIRECTION_CROSS && index % 2 == 1;
    const size_t columns = by_columns ? mamba_grid_columns(info) : 1;

    if (info->local_conv) {
        mamba_local_conv(context, layer);
        trace_rows(context, "local", index, context->x, length, d_model, context->d_model);
    }
    project(context, layer, columns, index == 0 && context->member->folded);
    trace_rows(context, "in_proj.x", index, context->xs, length, d_inner, context->d_inner);
    trace_rows(context, "in_proj.z", index, context->z, length, d_inner, context->d_inner);
    mix(context, layer, index);
    struct linear out_proj = layer->out_proj;
    out_proj.bias = context->x;
    out_proj.bias_stride = context->d_model;
    context->model->kernels->matmul(context->x, context->d_model, in_image_order(context, columns),
                                    context->d_inner, length, &out_proj);
    trace_rows(context, "residual", index, context->x, length, d_model, context->d_model);
}

/* ---- head -------------------------------------------------------------------------------- */

static void pool(struct mamba_context *context)
{
    const struct mamba_info *info = &context->member->info;
    const size_t length = info->length, stride = context->d_model;
    const size_t first = info->pool == POOL_LAST ? length - 1 : 0, count = length - first;
    normalise(context, context->hidden, context->x + first * stride, stride, count);
    memset(context->pooled, 0, stride * sizeof *context->pooled);
    for (size_t t = 0; t < count; t++)
        context->model->kernels->add(context->pooled, context->hidden + t * stride, stride);
    for (size_t i = 0; i < stride; i++)
        context->pooled[i] /= (float)count;
    trace_rows(context, "pooled", -1, context->pooled, 1, info->d_model, stride);
}

static void classify(struct mamba_context *context)
{
    const struct mamba_info *info = &context->member->info;
    const size_t stride = (size_t)mamba_pad(info->n_classes);
    context->model->kernels->matmul(context->logits, stride, context->pooled, context->d_model, 1,
                                    &context->member->head);
    trace_rows(context, "logits", -1, context->logits, 1, info->n_classes, stride);
}

/* ---- the ensemble ------------------------------------------------------------------------ */

/* From context->image to context->logits. */
static void run_member(struct mamba_context *context, const struct member_weights *member)
{
    mamba_use_member(context, member);
    if (!member->same_shape)
        mamba_stem_image(context);
    embed(context);
    for (int layer = 0; layer < (int)member->info.n_layers; layer++)
        run_layer(context, layer);
    pool(context);
    classify(context);
}

/* Normalises the pixels, of which one of the two arrays is NULL. */
static void normalise_pixels(struct mamba_context *context, const float *f32, const uint8_t *u8)
{
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &model->info;
    for (size_t i = 0; i < mamba_image_values(info); i++)
        context->image[i] =
            u8 ? model->pixel_values[u8[i]] : (f32[i] - info->pixel_mean) / info->pixel_std;
}

/* Returns by how much the largest of logits [n] exceeds the second largest. */
static float margin(const float *logits, size_t n)
{
    float best = -INFINITY, second = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        if (logits[i] > best) {
            second = best;
            best = logits[i];
        } else if (logits[i] > second) {
            second = logits[i];
        }
    }
    return best - second;
}

/* Adds up the members' logits [n_classes], member by member until their mean decides clearly, which
 * an exit_margin of 0 never does. Returns how many members were asked. */
static uint32_t ask_members(struct mamba_context *context, float *logits)
{
    const struct mamba_info *info = &context->model->info;
    const float exit_margin = info->exit_margin > 0.0f ? info->exit_margin : INFINITY;
    uint32_t asked = 0;
    memset(logits, 0, info->n_classes * sizeof *logits);
    do {
        run_member(context, &context->model->members[asked++]);
        for (size_t class = 0; class < info->n_classes; class++)
            logits[class] += context->logits[class];
    } while (asked < info->members &&
             !(margin(logits, info->n_classes) > exit_margin * (float)asked));
    return asked;
}

/* Sets `logits` [n_classes] to the mean of the logits of the members that were asked. */
static mamba_status run(struct mamba_context *context, const float *f32, const uint8_t *u8,
                        float *logits)
{
    if (!context || (!f32 && !u8) || !logits)
        return MAMBA_ERR_ARGUMENT;
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &model->info;
    const uint64_t saved = denormals_off();
    normalise_pixels(context, f32, u8);
    context->asked = ask_members(context, logits);
    bool finite = true;
    for (size_t class = 0; class < info->n_classes; class++) {
        logits[class] /= (float)context->asked;
        finite = finite && mamba_is_finite(logits[class]);
    }
    denormals_restore(saved);
    return finite ? MAMBA_OK : MAMBA_ERR_MODEL;
}

/* ---- public ------------------------------------------------------------------------------ */

mamba_status mamba_forward(mamba_context *context, const float *pixels, float *logits)
{
    return run(context, pixels, NULL, logits);
}

mamba_status mamba_forward_u8(mamba_context *context, const uint8_t *pixels, float *logits)
{
    return run(context, NULL, pixels, logits);
}

uint32_t mamba_members_asked(const mamba_context *context)
{
    return context->asked;
}

void mamba_softmax(const float *logits, float *probabilities, size_t n)
{
    float max = -INFINITY, sum = 0.0f;
    for (size_t i = 0; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (size_t i = 0; i < n; i++) {
        probabilities[i] = expf(logits[i] - max); /* the largest is 1: nothing overflows */
        sum += probabilities[i];
    }
    for (size_t i = 0; i < n; i++)
        probabilities[i] /= sum;
}
