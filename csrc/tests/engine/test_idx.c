/* The readers of image, label and input files. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "cli/idx.h"
#include "tiny_model.h"

enum { IMAGES, LABELS, RAW };

/* Opens, checks and closes a file of one kind. Raw images are 2 x 3. */
static mamba_status open_as(int kind, const char *path, enum file_access access, mamba_error *error)
{
    struct idx idx = {0};
    mamba_status status;
    if (kind == RAW) {
        status = mamba_file_open(&idx.file, path, access, error);
        if (status == MAMBA_OK)
            status = mamba_raw_image_check(&idx.file, path, 2, 3, error);
    } else {
        status =
            mamba_idx_open(&idx, path, kind == IMAGES ? IDX_IMAGES : IDX_LABELS, access, error);
    }
    mamba_file_close(&idx.file);
    return status;
}

/* Reads `bytes` as a file of one kind. */
static mamba_status read_with(enum file_access access, int kind, const void *bytes, size_t size,
                              mamba_error *error)
{
    const char *path = tiny_path();
    tiny_write(path, bytes, size);
    mamba_status status = open_as(kind, path, access, error);
    unlink(path);
    return status;
}

/* Reads `bytes` mapped and copied, which must give the same. */
static mamba_status read_as(int kind, const void *bytes, size_t size, mamba_error *error)
{
    mamba_error copied = {MAMBA_OK, ""};
    mamba_status status = read_with(FILE_MAPPED, kind, bytes, size, error);
    CHECK(read_with(FILE_COPIED, kind, bytes, size, &copied) == status,
          "a copy gives another status");
    CHECK(status == MAMBA_OK || strcmp(copied.message, error->message) == 0, "%s, but copied: %s",
          error->message, copied.message);
    return status;
}

static void expect_refused(int kind, const void *bytes, size_t size, const char *field)
{
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = read_as(kind, bytes, size, &error);
    CHECK(status == MAMBA_ERR_INPUT && strstr(error.message, field),
          "%zu bytes: %d, '%s' not in %s", size, status, field, error.message);
}

static void test_images(void)
{
    const uint8_t good[] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6};
    struct idx images;
    tiny_write(tiny_path(), good, sizeof good);
    CHECK(mamba_idx_open(&images, tiny_path(), IDX_IMAGES, FILE_MAPPED, NULL) == MAMBA_OK,
          "good file refused");
    CHECK(images.n == 2 && images.height == 1 && images.width == 3, "dims");
    CHECK(memcmp(images.data, good + 16, 6) == 0, "pixels");
    mamba_file_close(&images.file);
    unlink(tiny_path());

    for (size_t size = 0; size < sizeof good; size++)
        expect_refused(IMAGES, good, size, "file size");
    uint8_t bad[sizeof good + 1] = {0};
    memcpy(bad, good, sizeof good);
    expect_refused(IMAGES, bad, sizeof bad, "file size"); /* a trailing byte */
    for (size_t i = 0; i < 4; i++) {
        bad[i] ^= 1;
        expect_refused(IMAGES, bad, sizeof good, "magic");
        bad[i] ^= 1;
    }
    bad[0] = 0x1F;
    bad[1] = 0x8B;
    expect_refused(IMAGES, bad, sizeof good, "gzip");
    for (size_t dim = 0; dim < 3; dim++) {
        char message[40];
        snprintf(message, sizeof message, "IDX dim %zu: got 0", dim);
        memcpy(bad, good, sizeof good);
        memset(bad + 4 + 4 * dim, 0, 4);
        expect_refused(IMAGES, bad, sizeof good, message);
        memset(bad + 4 + 4 * dim, 0xFF, 4);
        snprintf(message, sizeof message, "IDX dim %zu: got 4294967295", dim);
        expect_refused(IMAGES, bad, sizeof good, dim ? message : "file size");
    }
    /* 2^96 pixels: the product must not wrap around to the size of the file. */
    memset(bad + 4, 0xFF, 12);
    expect_refused(IMAGES, bad, sizeof good, "IDX dim 1: got 4294967295");
}

/* The longest sides, and one pixel more. */
static void test_sides(void)
{
    static uint8_t image[16 + IDX_MAX_SIDE + 1];
    for (size_t dim = 1; dim < 3; dim++) {
        const uint8_t head[16] = {0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1};
        mamba_error error = {MAMBA_OK, ""};
        char message[60];
        memcpy(image, head, sizeof head);
        image[4 + 4 * dim + 2] = IDX_MAX_SIDE >> 8;
        image[4 + 4 * dim + 3] = 0;
        CHECK(read_as(IMAGES, image, sizeof image - 1, &error) == MAMBA_OK, "%s", error.message);
        image[4 + 4 * dim + 3] = 1;
        snprintf(message, sizeof message, "IDX dim %zu: got 4097, expected 1..4096", dim);
        expect_refused(IMAGES, image, sizeof image, message);
    }
}

static void test_labels(void)
{
    const uint8_t good[] = {0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9};
    struct idx labels;
    tiny_write(tiny_path(), good, sizeof good);
    CHECK(mamba_idx_open(&labels, tiny_path(), IDX_LABELS, FILE_MAPPED, NULL) == MAMBA_OK,
          "good file refused");
    CHECK(labels.n == 3 && labels.data[0] == 7 && labels.data[2] == 9, "labels");
    mamba_file_close(&labels.file);
    unlink(tiny_path());

    for (size_t size = 0; size < sizeof good; size++)
        expect_refused(LABELS, good, size, "file size");
    uint8_t bad[sizeof good + 1] = {0};
    memcpy(bad, good, sizeof good);
    expect_refused(LABELS, bad, sizeof bad, "file size");
    bad[3] = 3;
    expect_refused(LABELS, bad, sizeof bad, "magic"); /* images */
    bad[2] = 0x0D;
    bad[3] = 1;
    expect_refused(LABELS, bad, sizeof good, "magic"); /* floats */
    memcpy(bad, good, sizeof good);
    memset(bad + 4, 0, 4);
    expect_refused(LABELS, bad, 8, "dim"); /* no labels at all */
}

static void test_raw(void)
{
    float pixels[7] = {0.0f, 1.0f, 0.5f, 0.25f, -0.0f, 1e-40f, 0.0f};
    mamba_error error;
    CHECK(read_as(RAW, pixels, 24, &error) == MAMBA_OK, "%s", error.message);
    for (size_t size = 0; size <= sizeof pixels; size++) {
        if (size != 24)
            expect_refused(RAW, pixels, size, "file size");
    }
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, -1e-6f, 1.000001f, 255.0f};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pixels[3] = bad[i];
        expect_refused(RAW, pixels, 24, "pixel 3");
    }
}

/* Huge files are refused before a copy begins. */
static void test_large_copies(void)
{
    const uint8_t heads[][16] = {[IMAGES] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3},
                                 [LABELS] = {0, 0, 8, 1, 0, 0, 0, 3},
                                 [RAW] = {0}};
    for (int kind = IMAGES; kind <= RAW; kind++) {
        const char *path = tiny_path();
        mamba_error error = {MAMBA_OK, ""};
        tiny_write(path, heads[kind], sizeof heads[kind]);
        if (truncate(path, sizeof(size_t) > 4 ? (off_t)1 << 40 : (off_t)1 << 30) == 0) {
            open_as(kind, path, FILE_COPIED, &error);
            CHECK(error.status == MAMBA_ERR_INPUT && strstr(error.message, "file size"),
                  "kind %d: %s", kind, error.message);
        }
        unlink(path);
    }
}

static void test_not_files(void)
{
    CHECK(open_as(IMAGES, "/dev/null", FILE_MAPPED, NULL) == MAMBA_ERR_IO, "a device");
    CHECK(open_as(IMAGES, "/nonexistent", FILE_COPIED, NULL) == MAMBA_ERR_IO, "missing");
    CHECK(open_as(RAW, "/tmp", FILE_COPIED, NULL) == MAMBA_ERR_IO, "a folder");
}

int main(void)
{
    test_images();
    test_sides();
    test_labels();
    test_raw();
    test_large_copies();
    test_not_files();
    return check_summary();
}
