/* From an image to tokens: one linear map per patch, or 3x3 convolutions. Either is a matrix
 * product over an im2col matrix: one row per output, which holds that output's inputs. This file
 * gathers the rows; the kernels multiply. */
#include "stem.h"

#include "copy.h"

#include <string.h>

/* ---- the patch stem ---------------------------------------------------------------------- */

/* im2col [length, patch_height * patch_width * channels] = all patches, each flattened row by row.
 */
static void patch_stem(struct mamba_context *context)
{
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &context->member->info;
    const size_t height = info->patch_height, width = info->patch_width * info->channels;
    const size_t columns = mamba_grid_columns(info), stride = mamba_im2col_stride(height * width);
    const float *image = context->image;
    float *im2col = context->im2col;
    for (size_t top = 0; top < info->height; top += height, im2col += columns * stride)
        for (size_t row = 0; row < height; row++, image += columns * width)
            mamba_copy_rows(im2col + row * width, stride, image, width, width, columns);
    model->kernels->matmul(context->x, context->d_model, context->im2col, stride, info->length,
                           &context->member->patch_stem);
}

/* ---- conv stems -------------------------------------------------------------------------- */

/* A border of zeros one pixel wide makes the three pixels of each row of a 3x3 window lie one after
 * the other, in the image's edges too. */
struct feature_map {
    float *data; /* [height + 2, width + 2, channels] */
    size_t height, width, channels;
};

/* Row `y`, counted from the border's top row. */
static float *map_row(struct feature_map map, size_t y)
{
    return map.data + y * (map.width + 2) * map.channels;
}

/* Sets the border and what follows the map in its memory to zeros; returns the floats of that
 * memory. */
static size_t clear_border(struct feature_map map)
{
    const size_t n = map.channels, row = (map.width + 2) * n;
    const size_t floats = mamba_feature_map_floats(map.height, map.width, n);
    float *at = map.data, *end = at + floats;
    memset(at, 0, row * sizeof *at);
    for (size_t y = 0; y < map.height; y++) {
        at += row;
        memset(at - n, 0, 2 * n * sizeof *at); /* the row before's right end, this one's left */
    }
    at += row - n;
    memset(at, 0, (size_t)(end - at) * sizeof *at);
    return floats;
}

/* im2col [rows * width, 9 * channels] of a 3x3 convolution with padding 1, for `rows` rows of
 * `width` outputs; the inputs of an output in the order (ky, kx, channel). */
static void gather_3x3(float *im2col, size_t im2col_stride, struct feature_map in, size_t stride,
                       size_t first_row, size_t rows, size_t width)
{
    const size_t run = 3 * in.channels;
    for (size_t y = first_row; y < first_row + rows; y++, im2col += width * im2col_stride)
        for (size_t ky = 0; ky < 3; ky++)
            mamba_copy_rows(im2col + ky * run, im2col_stride, map_row(in, stride * y + ky),
                            stride * in.channels, run, width);
}

/* out = bias + the 3x3 convolution of `in`, some rows at a time. With `tokens`, out.data is the
 * array of tokens [height * width, channels], which has no border. */
static void conv_3x3(struct mamba_context *context, struct feature_map out, struct feature_map in,
                     const struct linear *weights, size_t stride, bool tokens)
{
    const size_t im2col_stride = mamba_im2col_stride(weights->in);
    const size_t out_stride = (size_t)mamba_pad(out.channels), at_once = mamba_conv_rows(out.width);
    size_t rows;
    for (size_t y = 0; y < out.height; y += rows) {
        rows = out.height - y < 2 * at_once ? out.height - y : at_once;
        gather_3x3(context->im2col, im2col_stride, in, stride, y, rows, out.width);
        float *result = tokens ? out.data + y * out.width * out_stride : context->conv_output;
        context->model->kernels->matmul(result, out_stride, context->im2col, im2col_stride,
                                        rows * out.width, weights);
        for (size_t r = 0; !tokens && r < rows; r++, result += out.width * out_stride)
            mamba_copy_rows(map_row(out, y + r + 1) + out.channels, out.channels, result,
                            out_stride, out.channels, out.width);
    }
}

static struct feature_map image_map(const struct mamba_context *context)
{
    const struct mamba_info *info = &context->member->info;
    return (struct feature_map){context->feature_maps[0], info->height, info->width,
                                info->channels};
}

/* SiLU between the convolutions goes over the whole map: it keeps the border's zeros. */
static void conv_stem(struct mamba_context *context)
{
    const struct mamba_model *model = context->model;
    const struct mamba_info *info = &context->member->info;
    struct stem_conv convs[MAX_STEM_CONVS];
    const size_t n = mamba_stem_convs(info, convs);
    struct feature_map in = image_map(context);
    for (size_t i = 0; i < n; i++) {
        const bool last = i + 1 == n;
        const struct feature_map out = {
            .data = last ? context->x : context->feature_maps[i + 1],
            .height = mamba_conv_side((uint32_t)in.height, convs[i].stride),
            .width = mamba_conv_side((uint32_t)in.width, convs[i].stride),
            .channels = convs[i].out,
        };
        conv_3x3(context, out, in, &context->member->stem_convs[i], convs[i].stride, last);
        if (!last)
            model->kernels->silu(out.data, clear_border(out));
        in = out;
    }
}

void mamba_stem_image(struct mamba_context *context)
{
    if (context->member->info.stem == STEM_PATCH)
        return;
    const struct feature_map map = image_map(context);
    const size_t n = map.channels, row = map.width * n;
    mamba_copy_rows(map_row(map, 1) + n, row + 2 * n, context->image, row, row, map.height);
    clear_border(map);
}

void mamba_stem(struct mamba_context *context)
{
    if (context->member->info.stem == STEM_PATCH)
        patch_stem(context);
    else
        conv_stem(context);
}
