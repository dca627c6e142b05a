/* From an image to tokens: one linear map of each patch, or 3x3 convolutions. What is here copies;
 * the products are the kernels'. */
#include "stem.h"

#include <stdbool.h>
#include <string.h>

/* All patches, each flattened row by row. */
static void gather_patches(float *window, size_t window_stride, const float *image,
                           const struct mamba_info *info)
{
    const size_t height = info->patch_height, width = info->patch_width;
    for (size_t top = 0; top < info->height; top += height) {
        for (size_t left = 0; left < info->width; left += width, window += window_stride) {
            for (size_t row = 0; row < height; row++) {
                const float *pixels = image + (top + row) * info->width + left;
                memcpy(window + row * width, pixels, width * sizeof *pixels);
            }
        }
    }
}

static void patch_stem(struct mamba_context *context)
{
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &model->info;
    const uint32_t pixels = info->patch_height * info->patch_width;
    const size_t stride = (size_t)mamba_pad(pixels);
    gather_patches(context->window, stride, context->image, info);
    model->kernels->matmul(context->x, context->d_model, context->window, stride,
                           context->member->stem_weight, context->member->stem_bias, info->length,
                           pixels, info->d_model);
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

/* n floats each from `count` places to others, `to` going upwards, four at a time: up to 3 floats
 * behind each place are written, too. Those that belong to a later place are written over with it;
 * the others are padding, or a border's, or never read. What is read there is whatever follows in
 * the context's memory. */
static void copy_each(float *to, size_t to_stride, const float *from, size_t from_stride, size_t n,
                      size_t count)
{
    for (; count > 0; count--, to += to_stride, from += from_stride)
        for (size_t i = 0; i < n; i += 4)
            memcpy(to + i, from + i, 4 * sizeof *to);
}

/* Pixels one behind the other in a row. */
struct segment {
    size_t row, column, count;
};

/* Of the n pixels from number `first` on, counted row by row, those in the first one's row. */
static struct segment first_segment(size_t first, size_t n, size_t width)
{
    const size_t column = first % width, left = width - column;
    return (struct segment){first / width, column, n < left ? n : left};
}

/* The windows of n outputs of a 3x3 convolution with padding 1, from number `first` on: for each
 * its nine inputs, in the order (ky, kx, channel). */
static void gather_3x3(float *window, size_t window_stride, struct picture in, size_t stride,
                       size_t first, size_t width, size_t n)
{
    const size_t run = 3 * in.channels, step = stride * in.channels;
    while (n > 0) {
        const struct segment part = first_segment(first, n, width);
        for (size_t ky = 0; ky < 3; ky++)
            copy_each(window + ky * run, window_stride,
                      picture_row(in, stride * part.row + ky) + part.column * step, step, run,
                      part.count);
        window += part.count * window_stride;
        first += part.count;
        n -= part.count;
    }
}

/* n pixels, rows of `from`, into the picture from number `first` on. */
static void put_pixels(struct picture out, size_t first, const float *from, size_t from_stride,
                       size_t n)
{
    while (n > 0) {
        const struct segment part = first_segment(first, n, out.width);
        copy_each(picture_row(out, part.row + 1) + (part.column + 1) * out.channels, out.channels,
                  from, from_stride, out.channels, part.count);
        from += part.count * from_stride;
        first += part.count;
        n -= part.count;
    }
}

/* out = bias + the 3x3 convolution of `in`, some pixels at a time. The tokens, which the last
 * convolution makes, have no border, and are stored as they come. */
static void conv_3x3(struct mamba_context *context, struct picture out, struct picture in,
                     struct conv_weights weights, size_t stride, bool tokens)
{
    const size_t inputs = 9 * in.channels, window_stride = mamba_window_stride(in.channels);
    const size_t total = out.height * out.width, out_stride = (size_t)mamba_pad(out.channels);
    size_t n;
    for (size_t done = 0; done < total; done += n) {
        n = total - done < 2 * STEM_PIXELS ? total - done : STEM_PIXELS;
        gather_3x3(context->window, window_stride, in, stride, done, out.width, n);
        float *y = tokens ? out.data + done * out_stride : context->pixels;
        context->model->kernels->matmul(y, out_stride, context->window, window_stride,
                                        weights.weight, weights.bias, n, inputs, out.channels);
        if (!tokens)
            put_pixels(out, done, y, out_stride, n);
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
    put_pixels(picture, 0, context->image, 1, picture.height * picture.width);
    clear_border(picture);
}

void mamba_stem(struct mamba_context *context)
{
    if (context->model->info.stem == STEM_PATCH)
        patch_stem(context);
    else
        conv_stem(context);
}
