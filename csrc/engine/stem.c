/* From an image to tokens: one linear map of each patch, or 3x3 convolutions. What is here copies;
 * the products are the kernels'. */
#include "stem.h"

#include "copy.h"

#include <stdbool.h>
#include <string.h>

/* All patches, each flattened row by row. */
static void gather_patches(float *window, size_t window_stride, const float *image,
                           const struct mamba_info *info)
{
    const size_t height = info->patch_height, width = info->patch_width;
    const size_t columns = info->width / width;
    for (size_t top = 0; top < info->height; top += height, window += columns * window_stride)
        for (size_t row = 0; row < height; row++, image += info->width)
            mamba_copy_rows(window + row * width, window_stride, image, width, width, columns);
}

static void patch_stem(struct mamba_context *context)
{
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &model->info;
    const uint32_t pixels = info->patch_height * info->patch_width;
    const size_t stride = mamba_window_stride(pixels);
    gather_patches(context->window, stride, context->image, info);
    model->kernels->matmul(context->x, context->d_model, context->window, stride,
                           context->member->stem_weight, context->member->stem_bias, 0,
                           info->length, pixels, info->d_model);
}

/* A picture whose pixels are vectors, in a border of zeros one pixel wide, so that the three pixels
 * of a window's row always lie one behind the other. */
struct picture {
    float *data; /* [height + 2, width + 2, channels] */
    size_t height, width, channels;
};

/* Row y of those with the border. */
static float *picture_row(struct picture picture, size_t y)
{
    return picture.data + y * (picture.width + 2) * picture.channels;
}

/* Zeros around the picture, and behind it to the end of its memory; returns how many floats that
 * has. */
static size_t clear_border(struct picture picture)
{
    const size_t n = picture.channels, row = (picture.width + 2) * n;
    const size_t floats = mamba_picture_floats(picture.height, picture.width, n);
    float *at = picture.data, *end = at + floats;
    memset(at, 0, row * sizeof *at);
    for (size_t y = 0; y < picture.height; y++) {
        at += row;
        memset(at - n, 0, 2 * n * sizeof *at);
    }
    at += row - n;
    memset(at, 0, (size_t)(end - at) * sizeof *at);
    return floats;
}

/* Some rows' windows of a 3x3 convolution with padding 1: for each of `width` outputs a row its
 * nine inputs, in the order (ky, kx, channel). */
static void gather_3x3(float *window, size_t window_stride, struct picture in, size_t stride,
                       size_t first_row, size_t rows, size_t width)
{
    const size_t run = 3 * in.channels;
    for (size_t y = first_row; y < first_row + rows; y++, window += width * window_stride)
        for (size_t ky = 0; ky < 3; ky++)
            mamba_copy_rows(window + ky * run, window_stride, picture_row(in, stride * y + ky),
                            stride * in.channels, run, width);
}

/* Pixels, rows of `from`, into some rows of the picture. */
static void put_rows(struct picture out, size_t first_row, size_t rows, const float *from,
                     size_t from_stride)
{
    for (size_t y = first_row; y < first_row + rows; y++, from += out.width * from_stride)
        mamba_copy_rows(picture_row(out, y + 1) + out.channels, out.channels, from, from_stride,
                        out.channels, out.width);
}

/* out = bias + the 3x3 convolution of `in`, some rows at a time. The tokens, which the last
 * convolution makes, have no border, and are stored as they come. */
static void conv_3x3(struct mamba_context *context, struct picture out, struct picture in,
                     struct conv_weights weights, size_t stride, bool tokens)
{
    const size_t inputs = 9 * in.channels, window_stride = mamba_window_stride(inputs);
    const size_t out_stride = (size_t)mamba_pad(out.channels), at_once = mamba_stem_rows(out.width);
    size_t rows;
    for (size_t y = 0; y < out.height; y += rows) {
        rows = out.height - y < 2 * at_once ? out.height - y : at_once;
        gather_3x3(context->window, window_stride, in, stride, y, rows, out.width);
        float *result = tokens ? out.data + y * out.width * out_stride : context->pixels;
        context->model->kernels->matmul(result, out_stride, context->window, window_stride,
                                        weights.weight, weights.bias, 0, rows * out.width, inputs,
                                        out.channels);
        if (!tokens)
            put_rows(out, y, rows, result, out_stride);
    }
}

static struct picture image_picture(const struct mamba_context *context)
{
    const struct mamba_info *info = &context->model->info;
    return (struct picture){context->stem_maps[0], info->height, info->width, 1};
}

/* SiLU between the convolutions; that of the borders' zeros is 0. */
static void conv_stem(struct mamba_context *context)
{
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &model->info;
    struct stem_conv convs[MAX_STEM_CONVS];
    const size_t n = mamba_stem_convs(info, convs);
    struct picture in = image_picture(context);
    for (size_t i = 0; i < n; i++) {
        const bool last = i + 1 == n;
        const struct picture out = {
            .data = last ? context->x : context->stem_maps[i + 1],
            .height = mamba_strided((uint32_t)in.height, convs[i].stride),
            .width = mamba_strided((uint32_t)in.width, convs[i].stride),
            .channels = convs[i].out,
        };
        conv_3x3(context, out, in, context->member->stem_convs[i], convs[i].stride, last);
        if (!last)
            model->kernels->silu(out.data, clear_border(out));
        in = out;
    }
}

void mamba_stem_image(struct mamba_context *context)
{
    if (context->model->info.stem == STEM_PATCH)
        return;
    const struct picture picture = image_picture(context);
    mamba_copy_rows(picture_row(picture, 1) + 1, picture.width + 2, context->image, picture.width,
                    picture.width, picture.height);
    clear_border(picture);
}

void mamba_stem(struct mamba_context *context)
{
    if (context->model->info.stem == STEM_PATCH)
        patch_stem(context);
    else
        conv_stem(context);
}
