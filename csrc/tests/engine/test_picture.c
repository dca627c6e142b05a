/* Pictures: any size, channels, stride and bytes, prepared for a model. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "mamba.h"

enum { RESIZE, DIGIT };
enum { SIDE = 28, PIXELS = SIDE * SIDE };

/* A drawn 7, `side` pixels a side, of value `ink` on `paper`. */
static void draw_seven(uint8_t *pixels, size_t stride, size_t side, uint8_t ink, uint8_t paper)
{
    for (size_t y = 0; y < side; y++)
        for (size_t x = 0; x < side; x++) {
            const size_t v = 20 * y / side, u = 20 * x / side, right = 16 - v / 2;
            const int bar = v < 3 && u >= 3 && u < 17, leg = v >= 3 && u >= right - 3 && u < right;
            pixels[y * stride + x] = bar || leg ? ink : paper;
        }
}

static mamba_picture grey(const uint8_t *pixels, size_t width, size_t height)
{
    return (mamba_picture){pixels, width, height, 1, width};
}

static mamba_status prepare(const mamba_picture *picture, uint8_t *out)
{
    return mamba_prepare_picture(picture, DIGIT, SIDE, SIDE, 1, out, NULL);
}

/* The 7 as MNIST would show it: 20 pixels high, its centre of mass in the middle. */
static void expected_seven(uint8_t *out)
{
    uint8_t plain[PIXELS] = {0};
    draw_seven(plain + 4 * SIDE + 4, SIDE, 20, 255, 0);
    const mamba_picture picture = grey(plain, SIDE, SIDE);
    CHECK(prepare(&picture, out) == MAMBA_OK, "refused");
    uint64_t sum = 0, x_sum = 0, y_sum = 0;
    size_t top = SIDE, bottom = 0;
    for (size_t i = 0; i < PIXELS; i++) {
        sum += out[i];
        x_sum += out[i] * (i % SIDE);
        y_sum += out[i] * (i / SIDE);
        top = out[i] && i / SIDE < top ? i / SIDE : top;
        bottom = out[i] ? i / SIDE + 1 : bottom;
    }
    CHECK(bottom - top == 20, "%zu rows", bottom - top);
    CHECK(2 * x_sum >= 27 * sum && 2 * x_sum <= 29 * sum, "centre x %g",
          (double)x_sum / (double)sum);
    CHECK(2 * y_sum >= 27 * sum && 2 * y_sum <= 29 * sum, "centre y %g",
          (double)y_sum / (double)sum);
}

static int largest_difference(const uint8_t *a, const uint8_t *b)
{
    int largest = 0;
    for (size_t i = 0; i < PIXELS; i++)
        if (abs(a[i] - b[i]) > largest)
            largest = abs(a[i] - b[i]);
    return largest;
}

static double mean_difference(const uint8_t *a, const uint8_t *b)
{
    int sum = 0;
    for (size_t i = 0; i < PIXELS; i++)
        sum += abs(a[i] - b[i]);
    return (double)sum / (double)PIXELS;
}

static void test_places_and_polarities(const uint8_t *seven)
{
    static const struct {
        size_t side, x, y, width, height;
        uint8_t ink, paper;
    } cases[] = {
        {20, 0, 0, 28, 28, 255, 0},      {20, 8, 8, 28, 28, 0, 255},
        {20, 70, 3, 120, 60, 90, 120},   {200, 32, 16, 300, 280, 10, 240},
        {40, 300, 400, 600, 800, 0, 90}, {1000, 500, 900, 2000, 2000, 200, 170},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t width = cases[i].width, height = cases[i].height;
        uint8_t *pixels = malloc(width * height), out[PIXELS], again[PIXELS];
        memset(pixels, cases[i].paper, width * height);
        draw_seven(pixels + cases[i].y * width + cases[i].x, width, cases[i].side, cases[i].ink,
                   cases[i].paper);
        mamba_picture picture = grey(pixels, width, height);
        CHECK(prepare(&picture, out) == MAMBA_OK, "case %zu", i);
        /* A larger picture is averaged; the place of its ink is known to a fraction of a pixel. */
        const double difference = mean_difference(out, seven);
        CHECK(difference <= (width < 100 || height < 100 ? 0 : 4), "case %zu: differs by %g", i,
              difference);
        picture = grey(out, SIDE, SIDE);
        CHECK(prepare(&picture, again) == MAMBA_OK && !memcmp(out, again, PIXELS),
              "case %zu: a second pass changes it", i);
        free(pixels);
    }
}

static uint32_t random_below(uint32_t n)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
}

/* Light from one side, noise, and single wrong pixels far from the digit. */
static void test_gradient_and_noise(const uint8_t *seven)
{
    enum { WIDTH = 150, HEIGHT = 110 };
    uint8_t pixels[WIDTH * HEIGHT], out[PIXELS];
    memset(pixels, 200, sizeof pixels);
    draw_seven(pixels + 30 * WIDTH + 80, WIDTH, 60, 80, 200);
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)(pixels[i] - 40 + i % WIDTH / 3 + random_below(11) + random_below(11));
    pixels[5 * WIDTH + 5] = pixels[100 * WIDTH + 20] = 0;
    const mamba_picture picture = grey(pixels, WIDTH, HEIGHT);
    CHECK(prepare(&picture, out) == MAMBA_OK, "refused");
    CHECK(mean_difference(out, seven) < 8, "differs by %g", mean_difference(out, seven));
}

static void test_channels_and_stride(const uint8_t *seven)
{
    enum { SPACE = 3 };
    uint8_t plain[PIXELS] = {0}, out[PIXELS], bytes[SIDE * (SIDE * 4 + SPACE)];
    draw_seven(plain + 4 * SIDE + 4, SIDE, 20, 255, 0);
    /* black and white ink on transparent paper, of the other colour or none */
    static const uint8_t inks[] = {0, 255};
    for (size_t channels = 1; channels <= 4; channels++)
        for (size_t k = 0; k < 2; k++) {
            const int has_alpha = channels % 2 == 0;
            const size_t stride = SIDE * channels + SPACE;
            memset(bytes, 77, sizeof bytes);
            for (size_t i = 0; i < PIXELS; i++) {
                uint8_t *pixel = bytes + i / SIDE * stride + i % SIDE * channels;
                memset(pixel, has_alpha ? inks[k] : k ? plain[i] : 255 - plain[i], channels);
                if (has_alpha)
                    pixel[channels - 1] = plain[i];
            }
            const mamba_picture picture = {bytes, SIDE, SIDE, channels, stride};
            CHECK(prepare(&picture, out) == MAMBA_OK && largest_difference(out, seven) == 0,
                  "%zu channels, ink %d", channels, inks[k]);
        }
}

/* An opaque card with a 7 on it, and transparent pixels of any colour on its four sides. */
static void test_transparent_margin(const uint8_t *seven)
{
    enum { MAX_WIDTH = SIDE * 3 };
    static uint8_t bytes[MAX_WIDTH * MAX_WIDTH * 4];
    static const uint8_t levels[][2] = {{0, 255}, {255, 0}, {90, 120}, {200, 170}}; /* ink, paper */
    static const size_t margins[] = {0, 1, 3, 8, SIDE / 2, SIDE};
    uint8_t card[PIXELS], out[PIXELS];
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        for (size_t k = 0; k < sizeof margins / sizeof *margins; k++)
            for (size_t channels = 2; channels <= 4; channels += 2) {
                const size_t side = SIDE + 2 * margins[k], stride = side * channels;
                memset(card, levels[i][1], sizeof card);
                draw_seven(card + 4 * SIDE + 4, SIDE, 20, levels[i][0], levels[i][1]);
                memset(bytes, i % 2 ? 0 : 77, sizeof bytes);
                for (size_t y = 0; y < side; y++)
                    for (size_t x = 0; x < side; x++)
                        bytes[y * stride + (x + 1) * channels - 1] = 0;
                for (size_t j = 0; j < PIXELS; j++) {
                    uint8_t *pixel = bytes + (margins[k] + j / SIDE) * stride +
                                     (margins[k] + j % SIDE) * channels;
                    memset(pixel, card[j], channels);
                    pixel[channels - 1] = 255;
                }
                const mamba_picture picture = {bytes, side, side, channels, stride};
                CHECK(prepare(&picture, out) == MAMBA_OK && largest_difference(out, seven) == 0,
                      "%d on %d, margin %zu, %zu channels: differs by %d", levels[i][0],
                      levels[i][1], margins[k], channels, largest_difference(out, seven));
            }
}

static void test_nothing_drawn(void)
{
    enum { WIDTH = 200, HEIGHT = 90 };
    static uint8_t pixels[WIDTH * HEIGHT];
    uint8_t out[PIXELS];
    mamba_picture picture = grey(pixels, WIDTH, HEIGHT);
    for (int value = 0; value < 256; value += 85) {
        memset(pixels, value, sizeof pixels);
        mamba_error error = {MAMBA_OK, ""};
        CHECK(mamba_prepare_picture(&picture, DIGIT, SIDE, SIDE, 1, out, &error) ==
                      MAMBA_ERR_EMPTY &&
                  strstr(error.message, "nothing drawn"),
              "%d: %s", value, error.message);
    }
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)(100 + i / WIDTH / 4 + random_below(8) + random_below(8));
    CHECK(prepare(&picture, out) == MAMBA_ERR_EMPTY, "noise and light");
    for (size_t side = 1; side < 4; side++) {
        picture = grey(pixels, side, 1);
        CHECK(prepare(&picture, out) == MAMBA_ERR_EMPTY, "%zu pixels", side);
    }
}

static void test_resize(void)
{
    const uint8_t small[] = {0, 100, 200, 100, 0, 50, 255, 255};
    uint8_t out[3 * 16];
    mamba_picture picture = grey(small, 4, 2);
    mamba_status status = mamba_prepare_picture(&picture, RESIZE, 1, 2, 1, out, NULL);
    CHECK(status == MAMBA_OK && out[0] == 38 && out[1] == 203, "%d %d", out[0], out[1]);
    status = mamba_prepare_picture(&picture, RESIZE, 2, 4, 1, out, NULL);
    CHECK(status == MAMBA_OK && !memcmp(out, small, sizeof small), "the same size");
    status = mamba_prepare_picture(&picture, RESIZE, 1, 1, 3, out, NULL);
    CHECK(status == MAMBA_OK && out[0] == 120 && out[1] == 120 && out[2] == 120, "grey to RGB");
    status = mamba_prepare_picture(&picture, RESIZE, 1, 1, 4, out, NULL);
    CHECK(status == MAMBA_OK && out[0] == 120 && out[3] == 255, "grey to RGBA");
    const uint8_t rgba[] = {255, 0, 0, 255, 9, 9, 9, 0};
    picture = (mamba_picture){rgba, 2, 1, 4, 8};
    status = mamba_prepare_picture(&picture, RESIZE, 1, 2, 1, out, NULL);
    CHECK(status == MAMBA_OK && out[0] == 77 && out[1] == 255, "luma, white paper: %d %d", out[0],
          out[1]);
    status = mamba_prepare_picture(&picture, RESIZE, 1, 2, 3, out, NULL);
    CHECK(status == MAMBA_OK && out[0] == 255 && out[1] == 0 && out[3] == 255, "RGBA to RGB");
}

static void test_refusals(void)
{
    uint8_t pixels[4] = {0}, out[16];
    static const struct {
        size_t width, height, channels, stride;
        uint32_t preparation, out_height, out_channels;
        mamba_status status;
    } cases[] = {
        {0, 1, 1, 1, RESIZE, 1, 1, MAMBA_ERR_INPUT},
        {1, 0, 1, 1, RESIZE, 1, 1, MAMBA_ERR_INPUT},
        {0, 0, 1, 0, DIGIT, 1, 1, MAMBA_ERR_INPUT},
        {65536, 1, 1, 65536, RESIZE, 1, 1, MAMBA_ERR_INPUT},
        {1, SIZE_MAX, 1, 1, DIGIT, 1, 1, MAMBA_ERR_INPUT},
        {1, 1, 0, 1, RESIZE, 1, 1, MAMBA_ERR_INPUT},
        {1, 1, 5, 5, RESIZE, 1, 1, MAMBA_ERR_INPUT},
        {2, 1, 2, 3, RESIZE, 1, 1, MAMBA_ERR_ARGUMENT},
        {1, 1, 1, 1, 2, 1, 1, MAMBA_ERR_ARGUMENT},
        {1, 1, 1, 1, DIGIT, 1, 3, MAMBA_ERR_ARGUMENT},
        {1, 1, 1, 1, RESIZE, 0, 1, MAMBA_ERR_ARGUMENT},
        {1, 1, 1, 1, RESIZE, 4097, 1, MAMBA_ERR_ARGUMENT},
        {1, 1, 1, 1, RESIZE, 1, 0, MAMBA_ERR_ARGUMENT},
        {1, 1, 1, 1, RESIZE, 1, 5, MAMBA_ERR_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const mamba_picture picture = {pixels, cases[i].width, cases[i].height, cases[i].channels,
                                       cases[i].stride};
        mamba_error error = {MAMBA_OK, ""};
        const mamba_status status =
            mamba_prepare_picture(&picture, cases[i].preparation, cases[i].out_height, 1,
                                  cases[i].out_channels, out, &error);
        CHECK(status == cases[i].status && error.status == status && strstr(error.message, "got") &&
                  strstr(error.message, "expected"),
              "case %zu: %d, %s", i, status, error.message);
    }
    const mamba_picture none = {NULL, 1, 1, 1, 1};
    CHECK(prepare(&none, out) == MAMBA_ERR_ARGUMENT && prepare(NULL, out) == MAMBA_ERR_ARGUMENT,
          "NULL");
}

/* The largest sides, one row or column that is its own stride. */
static void test_largest_sides(void)
{
    enum { LONG = 65535 };
    uint8_t *pixels = malloc(LONG), out[PIXELS];
    memset(pixels, 200, LONG);
    memset(pixels + LONG / 2, 20, 30);
    const mamba_picture row = grey(pixels, LONG, 1), column = grey(pixels, 1, LONG);
    for (uint32_t preparation = RESIZE; preparation <= DIGIT; preparation++) {
        const mamba_status a = mamba_prepare_picture(&row, preparation, SIDE, SIDE, 1, out, NULL);
        const mamba_status b =
            mamba_prepare_picture(&column, preparation, SIDE, SIDE, 1, out, NULL);
        CHECK(a == b && (a == MAMBA_OK || a == MAMBA_ERR_EMPTY), "%d %d", a, b);
    }
    free(pixels);
}

/* Any bytes of any shape, thin ones above all: valgrind sees what is read without being set. */
static void test_shapes(void)
{
    static uint8_t pixels[300 * 300];
    uint8_t out[PIXELS];
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)(random_below(4) ? 200 : random_below(256));
    for (size_t width = 1; width < 300; width += width < 4 ? 1 : 49)
        for (size_t height = 1; height < 300; height += height < 4 ? 1 : 49) {
            const mamba_picture picture = grey(pixels, width, height);
            const mamba_status status = prepare(&picture, out);
            size_t ink = 0;
            for (size_t i = 0; status == MAMBA_OK && i < PIXELS; i++)
                ink += out[i] > 0;
            CHECK(status == (ink ? MAMBA_OK : MAMBA_ERR_EMPTY), "%zu x %zu: %d", width, height,
                  status);
        }
}

int main(void)
{
    uint8_t seven[PIXELS];
    expected_seven(seven);
    test_places_and_polarities(seven);
    test_gradient_and_noise(seven);
    test_channels_and_stride(seven);
    test_transparent_margin(seven);
    test_nothing_drawn();
    test_resize();
    test_refusals();
    test_largest_sides();
    test_shapes();
    return check_summary();
}
