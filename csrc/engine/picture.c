/* From a picture to the pixels of a model: checks, channels, alpha, and scaling. digit.c has the
 * preparation `mnist`. */
#include "picture.h"

#include "denormals.h"
#include "error.h"
#include "model.h"

enum { MAX_SIDE = 65535, MAX_CHANNELS = 4, MAX_OUT_SIDE = 4096 };
enum { MIN_VARIANCE = 3 * 3 }; /* of grey levels: less is not paper and ink */
enum { COUNTED_ROWS = 128 };   /* of a taller picture: to be fast */

static bool has_alpha(size_t channels)
{
    return channels == 2 || channels == 4;
}

/* Sums of pixels are whole numbers of 1 / unit; a pixel is 0 to 255. */
static double unit(const struct plane *plane)
{
    return plane->picture->channels > 1 ? 256 * 255 : 1;
}

/* Returns the sum of n pixels. A constant `channels` makes it fast. */
static inline double sum_bytes(const struct plane *plane, const uint8_t *pixel, size_t n,
                               const size_t channels)
{
    uint64_t sum = 0;
    uint32_t missing = 0; /* opacity of at most 65,535 pixels */
    for (size_t i = 0; i < n; i++, pixel += channels) {
        uint32_t value = 0;
        for (size_t j = 0; j < channels; j++)
            value += plane->weights[j] * pixel[j];
        const uint32_t alpha = plane->composite ? pixel[channels - 1] : 255;
        sum += value * alpha;
        missing += 255 - alpha;
    }
    return (double)(sum + (uint64_t)plane->backdrop * 256 * missing);
}

static double sum_pixels(const struct plane *plane, const uint8_t *pixel, size_t n)
{
    uint32_t sum = 0; /* of at most 65,535 bytes */
    switch (plane->picture->channels) {
    case 1:
        for (size_t i = 0; i < n; i++)
            sum += pixel[i];
        return sum;
    case 2:
        return sum_bytes(plane, pixel, n, 2);
    case 3:
        return sum_bytes(plane, pixel, n, 3);
    default:
        return sum_bytes(plane, pixel, n, 4);
    }
}

static double row_sum(const struct plane *plane, size_t y, double x0, double x1)
{
    const mamba_picture *picture = plane->picture;
    const uint8_t *row = picture->pixels + y * picture->row_stride;
    const size_t first = (size_t)x0, last = (size_t)x1;
    const double before = x0 - (double)first, within = x1 - (double)last;
    double sum = sum_pixels(plane, row + first * picture->channels, last - first);
    if (before > 0)
        sum -= before * sum_pixels(plane, row + first * picture->channels, 1);
    if (within > 0)
        sum += within * sum_pixels(plane, row + last * picture->channels, 1);
    return sum;
}

double mamba_pixel(const struct plane *plane, size_t x, size_t y)
{
    const mamba_picture *picture = plane->picture;
    const uint8_t *pixel = picture->pixels + y * picture->row_stride + x * picture->channels;
    return sum_pixels(plane, pixel, 1) / unit(plane);
}

double mamba_window_mean(const struct plane *plane, const struct window *window)
{
    double sum = 0;
    const size_t x = (size_t)window->x0, row = (size_t)window->y0;
    if (window->x0 == (double)x && window->y0 == (double)row && window->x1 == (double)(x + 1) &&
        window->y1 == (double)(row + 1))
        return mamba_pixel(plane, x, row);
    for (size_t y = row; (double)y < window->y1; y++) {
        const double top = window->y0 > (double)y ? window->y0 : (double)y;
        const double bottom = window->y1 < (double)(y + 1) ? window->y1 : (double)(y + 1);
        sum += (bottom - top) * row_sum(plane, y, window->x0, window->x1);
    }
    return sum / ((window->x1 - window->x0) * (window->y1 - window->y0) * unit(plane));
}

/* Sets the part of side 0..n of a picture that is averaged into place i of `out`. Enlarging
 * averages two neighbours, which is linear interpolation. */
static void axis_window(size_t i, size_t out, size_t n, double *from, double *to)
{
    const double step = (double)n / (double)out, half = (step > 1 ? step : 1) / 2;
    const double middle = ((double)i + 0.5) * step;
    *from = middle > half ? middle - half : 0;
    *to = middle + half < (double)n ? middle + half : (double)n;
}

/* Returns channel `channel` of the `channels` of a model. Grey is the luma of ITU-R BT.601. */
static struct plane model_channel(const mamba_picture *picture, uint32_t channel, uint32_t channels,
                                  uint32_t backdrop)
{
    const bool wants_alpha = has_alpha(channels);
    struct plane plane = {.picture = picture,
                          .composite = has_alpha(picture->channels) && !wants_alpha,
                          .backdrop = backdrop};
    if (wants_alpha && channel == channels - 1)
        plane.weights[picture->channels - 1] = 256;
    else if (picture->channels < 3)
        plane.weights[0] = 256;
    else if (channels < 3)
        plane.weights[0] = 77, plane.weights[1] = 150, plane.weights[2] = 29;
    else
        plane.weights[channel] = 256;
    return plane;
}

static void resize(const mamba_picture *picture, uint32_t height, uint32_t width, uint32_t channels,
                   uint8_t *out)
{
    for (uint32_t channel = 0; channel < channels; channel++) {
        const struct plane plane = model_channel(picture, channel, channels, 255);
        const bool opaque =
            has_alpha(channels) && channel == channels - 1 && !has_alpha(picture->channels);
        for (size_t y = 0; y < height; y++)
            for (size_t x = 0; x < width; x++) {
                struct window window;
                axis_window(y, height, picture->height, &window.y0, &window.y1);
                axis_window(x, width, picture->width, &window.x0, &window.x1);
                out[(y * width + x) * channels + channel] =
                    opaque ? 255 : (uint8_t)(mamba_window_mean(&plane, &window) + 0.5);
            }
    }
}

/* How often each grey level occurs. */
struct levels {
    uint64_t counts[256], sum; /* sum: of the counts */
};

static void count_level(struct levels *levels, uint32_t level, uint32_t count)
{
    levels->counts[level] += count;
    levels->sum += count;
}

static uint32_t median_level(const struct levels *levels)
{
    uint32_t level = 0;
    for (uint64_t below = levels->counts[0]; 2 * below < levels->sum;
         below += levels->counts[level])
        level++;
    return level;
}

/* Returns the mean square of the differences to `from`. */
static double mean_square(const struct levels *levels, double from)
{
    double sum = 0;
    for (uint32_t level = 0; level < 256; level++)
        sum += (double)levels->counts[level] * (level - from) * (level - from);
    return levels->sum ? sum / (double)levels->sum : 0;
}

/* Counts the pixels' grey levels by alpha; and again at the rim of what is opaque, by how much
 * alpha falls from a pixel to its four neighbours. Of tall pictures some rows are enough: every
 * `step`-th one. */
static void count_levels(const mamba_picture *picture, size_t step, struct levels *all,
                         struct levels *rim)
{
    const struct plane grey = model_channel(picture, 0, 1, 0);
    const size_t channels = picture->channels, stride = picture->row_stride;
    for (size_t y = step / 2; y < picture->height; y += step) {
        const uint8_t *alpha = picture->pixels + y * stride + channels - 1;
        for (size_t x = 0; x < picture->width; x++, alpha += channels) {
            if (*alpha == 0)
                continue;
            const uint8_t near[] = {x > 0 ? alpha[-(ptrdiff_t)channels] : *alpha,
                                    x + 1 < picture->width ? alpha[channels] : *alpha,
                                    y > 0 ? alpha[-(ptrdiff_t)stride] : *alpha,
                                    y + 1 < picture->height ? alpha[stride] : *alpha};
            uint32_t level = 128, fall = 0;
            for (size_t i = 0; i + 1 < channels; i++)
                level += grey.weights[i] * (alpha - channels + 1)[i];
            for (size_t i = 0; i < 4; i++)
                fall += near[i] < *alpha ? *alpha - near[i] : 0;
            count_level(all, level / 256, *alpha);
            if (fall > 0)
                count_level(rim, level / 256, fall);
        }
    }
}

/* Returns the grey level to put under a digit's transparent pixels: that of the opaque paper, which
 * is at the rim. Mostly transparent pictures may be ink alone. Its levels vary at the rim as they
 * do inside, and it gets black or white, whichever differs more from it. */
static uint32_t digit_backdrop(const mamba_picture *picture)
{
    struct levels all = {0}, rim = {0};
    const size_t step = picture->height < COUNTED_ROWS ? 1 : picture->height / COUNTED_ROWS;
    count_levels(picture, step, &all, &rim);
    const uint32_t paper = median_level(&rim);
    const bool mostly_opaque =
        all.sum > (uint64_t)picture->width * (picture->height / step) * 255 / 2;
    if (mostly_opaque ||
        mean_square(&all, paper) > 2 * mean_square(&rim, paper) + (double)MIN_VARIANCE)
        return paper;
    return mean_square(&all, 255) > mean_square(&all, 0) ? 255 : 0;
}

/* Returns whether a pixel is not opaque. */
static bool is_transparent(const mamba_picture *picture)
{
    const size_t channels = picture->channels;
    uint8_t common = 255;
    for (size_t y = 0; has_alpha(channels) && y < picture->height && common == 255; y++) {
        const uint8_t *alpha = picture->pixels + y * picture->row_stride + channels - 1;
        for (size_t x = 0; x < picture->width; x++, alpha += channels)
            common &= *alpha;
    }
    return common < 255;
}

static mamba_status check(const mamba_picture *picture, uint32_t preparation, uint32_t height,
                          uint32_t width, uint32_t channels, const uint8_t *out, mamba_error *error)
{
    if (!picture || !picture->pixels || !out)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "picture: got NULL, expected pixels");
    if (picture->width - 1 >= MAX_SIDE || picture->height - 1 >= MAX_SIDE)
        return mamba_fail(error, MAMBA_ERR_INPUT, NULL,
                          "picture: got %zu x %zu pixels, expected sides of 1..%d", picture->width,
                          picture->height, MAX_SIDE);
    if (picture->channels - 1 >= MAX_CHANNELS)
        return mamba_fail(error, MAMBA_ERR_INPUT, NULL, "picture: got %zu channels, expected 1..%d",
                          picture->channels, MAX_CHANNELS);
    if (picture->row_stride < picture->width * picture->channels)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "picture: got rows %zu bytes apart, expected at least %zu",
                          picture->row_stride, picture->width * picture->channels);
    if (height - 1 >= MAX_OUT_SIDE || width - 1 >= MAX_OUT_SIDE || channels - 1 >= MAX_CHANNELS)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "model: got %u x %u pixels of %u channels, expected sides of 1..%d and "
                          "1..%d channels",
                          height, width, channels, MAX_OUT_SIDE, MAX_CHANNELS);
    if (preparation > PREPARATION_MNIST || (preparation == PREPARATION_MNIST && channels != 1))
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "preparation: got %u for %u channels, expected 0 (resize), or 1 (mnist) "
                          "for one channel",
                          preparation, channels);
    return MAMBA_OK;
}

mamba_status mamba_prepare_picture(const mamba_picture *picture, uint32_t preparation,
                                   uint32_t height, uint32_t width, uint32_t channels, uint8_t *out,
                                   mamba_error *error)
{
    mamba_status status = check(picture, preparation, height, width, channels, out, error);
    if (status != MAMBA_OK)
        return status;
    const uint64_t saved = denormals_off();
    if (preparation == PREPARATION_RESIZE) {
        resize(picture, height, width, channels, out);
    } else {
        struct plane grey = model_channel(picture, 0, 1, 0);
        if ((grey.composite = is_transparent(picture)))
            grey.backdrop = digit_backdrop(picture);
        status = mamba_prepare_digit(&grey, height, width, out, error);
    }
    denormals_restore(saved);
    return status;
}

mamba_status mamba_prepare_for_model(const mamba_model *model, const mamba_picture *picture,
                                     uint8_t *pixels, mamba_error *error)
{
    const mamba_info *info = &model->info;
    return mamba_prepare_picture(picture, info->preparation, info->height, info->width,
                                 info->channels, pixels, error);
}
