/* From an image to tokens: one linear map of each patch, or 3x3 convolutions. What is here copies;
 * the products are the kernels'. */
#include "stem.h"

#include <string.h>

/* One output row of the patch stem: its patches, each flattened row by row. */
static void gather_patches(float *window, size_t window_stride, const float *image,
                           const struct mamba_info *info, size_t patch_row)
{
    const size_t height = info->patch_height, width = info->patch_width;
    for (size_t column = 0; column < info->width / width; column++) {
        for (size_t row = 0; row < height; row++) {
            const float *pixels = image + (patch_row * height + row) * info->width + column * width;
            memcpy(window + column * window_stride + row * width, pixels, width * sizeof *pixels);
        }
    }
}

static void patch_stem(struct mamba_context *context)
{
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &model->info;
    const size_t columns = info->width / info->patch_width;
    const uint32_t pixels = info->patch_height * info->patch_width;
    const size_t stride = mamba_window_stride(pixels);
    for (size_t row = 0; row < info->height / info->patch_height; row++) {
        gather_patches(context->window, stride, context->image, info, row);
        model->kernels->matmul(context->x + row * columns * context->d_model, context->d_model,
                               context->window, stride, context->member->stem_weight,
                               context->member->stem_bias, columns, pixels, info->d_model);
    }
}

/* A picture whose pixels are vectors. */
struct picture {
    float *data; /* [height, width, channels], pixels `stride` floats apart */
    uint32_t height, width, channels;
    size_t stride;
};

static void copy_floats(float *to, const float *from, size_t n)
{
    if (n >= PAD) {
        memcpy(to, from, n * sizeof *to);
        return;
    }
    while (n-- > 0)
        *to++ = *from++;
}

/* The inputs of one row ky of a 3x3 window around pixel x of the picture's row y, both counted from
 * 1, so that padding is 0 and not negative. */
static void gather_row(float *to, struct picture in, size_t y, size_t x)
{
    const size_t n = in.channels;
    if (y < 1 || y > in.height) {
        memset(to, 0, 3 * n * sizeof *to);
        return;
    }
    const float *row = in.data + (y - 1) * in.width * in.stride;
    if (in.stride == n && x > 1 && x < in.width) {
        copy_floats(to, row + (x - 2) * n, 3 * n);
        return;
    }
    for (size_t column = x - 1; column <= x + 1; column++, to += n) {
        if (column < 1 || column > in.width)
            memset(to, 0, n * sizeof *to);
        else
            copy_floats(to, row + (column - 1) * in.stride, n);
    }
}

/* One output row of a 3x3 convolution with zero padding 1: for each output pixel its nine inputs,
 * in the order (ky, kx, channel). */
static void gather_3x3(float *window, size_t window_stride, struct picture in, size_t stride,
                       size_t out_row, size_t columns)
{
    for (size_t column = 0; column < columns; column++)
        for (size_t ky = 0; ky < 3; ky++)
            gather_row(window + column * window_stride + ky * 3 * in.channels, in,
                       stride * out_row + ky, stride * column + 1);
}

/* out = bias + the 3x3 convolution of `in`. */
static void conv_3x3(struct mamba_context *context, struct picture out, struct picture in,
                     struct conv_weights weights, size_t stride)
{
    const size_t window_stride = mamba_window_stride(9 * in.channels);
    for (size_t row = 0; row < out.height; row++) {
        gather_3x3(context->window, window_stride, in, stride, row, out.width);
        context->model->kernels->matmul(
            out.data + row * out.width * out.stride, out.stride, context->window, window_stride,
            weights.weight, weights.bias, out.width, 9 * (size_t)in.channels, out.channels);
    }
}

/* SiLU between the convolutions; the last one's output are the tokens. */
static void conv_stem(struct mamba_context *context)
{
    const struct mamba_model *model = context->model;
    struct stem_conv convs[MAX_STEM_CONVS];
    const size_t n = mamba_stem_convs(&model->info, convs);
    struct picture in = {context->image, model->info.height, model->info.width, 1, 1};
    for (size_t i = 0; i < n; i++) {
        const bool last = i + 1 == n;
        const struct picture out = {
            .data = last ? context->x : context->stem_maps[i],
            .height = mamba_strided(in.height, convs[i].stride),
            .width = mamba_strided(in.width, convs[i].stride),
            .channels = convs[i].out,
            .stride = (size_t)mamba_pad(convs[i].out),
        };
        conv_3x3(context, out, in, context->member->stem_convs[i], convs[i].stride);
        if (!last)
            model->kernels->silu(out.data, (size_t)out.height * out.width * out.stride);
        in = out;
    }
}

void mamba_stem(struct mamba_context *context)
{
    if (context->model->info.stem == STEM_PATCH)
        patch_stem(context);
    else
        conv_stem(context);
}
