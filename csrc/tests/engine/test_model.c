/* The loader accepts what docs/format.md describes, refuses everything else, and says why. */
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "crc32.h"
#include "tiny_model.h"

/* Checks that `tiny` is refused with a message that contains `field`. */
static void expect_refused(const struct tiny_model *tiny, const char *field)
{
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = tiny_open(&model, tiny, &error);
    CHECK(status == MAMBA_ERR_MODEL && error.status == status, "%s: status %d", field, status);
    CHECK(!model, "%s: a model came back", field);
    CHECK(strstr(error.message, field), "expected '%s' in: %s", field, error.message);
    mamba_model_close(model);
}

/* Every architecture opens, and its info is what was written. */
static void test_accepts(void)
{
    for (uint32_t bits = 0; bits < 2 * 96; bits++) {
        mamba_info dims = tiny_dims();
        dims.tied_a = bits & 1;
        dims.pos_embed = bits >> 1 & 1;
        dims.pool = bits >> 2 & 1;
        dims.direction = bits >> 3 & 3;
        dims.local_conv = bits >= 96;
        dims.members = 1 + bits % 3;
        if (bits % 96 >> 5) {
            dims.stem = bits % 96 >> 5;
            dims.patch_height = dims.patch_width = 0;
            dims.stem_width = 3;
        }
        struct tiny_model tiny = tiny_build(dims, bits);
        mamba_model *model;
        mamba_error error;
        if (CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message)) {
            mamba_info expected = tiny.dims, got = *mamba_model_info(model);
            expected.version = 1;
            expected.crc32 = tiny_get_u32(&tiny, TINY_CRC);
            expected.file_bytes = tiny.size;
            expected.parameters = got.parameters; /* test_parameters */
            CHECK(memcmp(&expected, &got, sizeof got) == 0, "info differs, architecture %u", bits);
        }
        mamba_model_close(model);
        tiny_free(&tiny);
    }
}

/* Counted by hand for tiny_dims(). */
static void test_parameters(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 1);
    mamba_model *model;
    CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open");
    const uint64_t stem = 5 * 6 + 5, head = 3 * 5 + 3;
    const uint64_t scan = 3 * 7 + 7 + 10 * 7 + 7 * 2 + 7 + 4 * 7 + 7;
    const uint64_t expected = stem + 2 * (2 * 7 * 5 + scan + 5 * 7) + head;
    CHECK(mamba_model_info(model)->parameters == expected, "got %llu, expected %llu",
          (unsigned long long)mamba_model_info(model)->parameters, (unsigned long long)expected);
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void test_every_truncation(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 2);
    tiny_write(tiny_path(), tiny.bytes, tiny.size);
    for (size_t size = tiny.size; size-- > 0;) {
        mamba_model *model;
        mamba_error error;
        if (truncate(tiny_path(), (off_t)size) != 0)
            abort();
        mamba_status status = mamba_model_open(&model, tiny_path(), &error);
        CHECK(status == MAMBA_ERR_MODEL && strstr(error.message, "file size"), "%zu bytes: %d, %s",
              size, status, error.message);
        mamba_model_close(model);
    }
    unlink(tiny_path());
    tiny_free(&tiny);
}

static void test_trailing_bytes(void)
{
    for (size_t extra = 1; extra <= 64; extra += 21) {
        struct tiny_model tiny = tiny_build(tiny_dims(), 3);
        tiny.bytes = realloc(tiny.bytes, tiny.size + extra);
        if (!tiny.bytes)
            abort();
        memset(tiny.bytes + tiny.size, 0, extra);
        tiny.size += extra;
        tiny_seal(&tiny);
        expect_refused(&tiny, "file size");
        tiny_free(&tiny);
    }
}

static void test_identity(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 4);
    for (size_t i = 0; i < 8; i++) {
        tiny.bytes[i] ^= 0x20;
        expect_refused(&tiny, "magic");
        tiny.bytes[i] ^= 0x20;
    }
    const uint32_t versions[] = {0, 2, 0x01000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        tiny_put_u32(&tiny, 8, versions[i]);
        expect_refused(&tiny, versions[i] == 0x01000000u ? "byte order" : "version");
    }
    tiny_free(&tiny);
}

static void test_checksum(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 10);
    tiny.bytes[tiny.size - 1] ^= 1;
    expect_refused(&tiny, "crc32: got ");
    tiny.bytes[tiny.size - 1] ^= 1;
    tiny_put_u32(&tiny, TINY_CRC, ~tiny_get_u32(&tiny, TINY_CRC));
    expect_refused(&tiny, "crc32: got ");
    tiny_free(&tiny);
}

/* Checks that the range of a field has no complaint about its value. Others may have. */
static void expect_in_range(const struct tiny_model *tiny, const char *name, double value)
{
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    char complaint[60];
    snprintf(complaint, sizeof complaint, ": %s: got %.9g, expected ", name, value);
    const mamba_status status = tiny_open(&model, tiny, &error);
    const char *found = strstr(error.message, complaint);
    CHECK(status == MAMBA_OK || !found || strstr(found, "a divisor"), "%s", error.message);
    mamba_model_close(model);
}

/* Each integer of the header: just outside its range and far outside, and its ends. */
static void test_integer_fields(void)
{
    const struct {
        const char *name;
        size_t offset;
        uint32_t bad[3], good[2];
    } fields[] = {
        {"flags", 16, {8, 0x80000000u, UINT32_MAX}, {0, 7}},
        {"height", 20, {0, 4097, UINT32_MAX}, {1, 4096}},
        {"width", 24, {0, 4097, UINT32_MAX}, {1, 4096}},
        {"channels", 28, {0, 2, UINT32_MAX}, {1, 1}},
        {"n_classes", 32, {1, 257, UINT32_MAX}, {2, 256}},
        {"stem", 36, {3, 4, UINT32_MAX}, {0, 2}},
        {"patch_height", 40, {0, 3, 5}, {1, 4}},
        {"patch_width", 44, {0, 4, 7}, {1, 6}},
        {"stem_width", 48, {1, 512, UINT32_MAX}, {0, 0}},
        {"d_model", 52, {0, 2049, UINT32_MAX}, {1, 2048}},
        {"n_layers", 56, {0, 65, UINT32_MAX}, {1, 64}},
        {"d_state", 60, {0, 257, UINT32_MAX}, {1, 256}},
        {"d_conv", 64, {0, 17, UINT32_MAX}, {1, 16}},
        {"d_inner", 68, {0, 8193, UINT32_MAX}, {1, 8192}},
        {"dt_rank", 72, {0, 2049, UINT32_MAX}, {1, 2048}},
        {"direction", 76, {4, 5, UINT32_MAX}, {0, 3}},
        {"pool", 80, {2, 3, UINT32_MAX}, {0, 1}},
        {"more_members", 96, {64, 255, UINT32_MAX}, {0, 63}},
    };
    struct tiny_model tiny = tiny_build(tiny_dims(), 5);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        uint32_t good = tiny_get_u32(&tiny, fields[i].offset);
        for (size_t j = 0; j < 3; j++) {
            tiny_put_u32(&tiny, fields[i].offset, fields[i].bad[j]);
            tiny_seal(&tiny);
            expect_refused(&tiny, fields[i].name);
        }
        for (size_t j = 0; j < 2; j++) {
            tiny_put_u32(&tiny, fields[i].offset, fields[i].good[j]);
            tiny_seal(&tiny);
            expect_in_range(&tiny, fields[i].name, fields[i].good[j]);
        }
        tiny_put_u32(&tiny, fields[i].offset, good);
    }
    tiny_free(&tiny);
}

static void test_conv_stem_fields(uint32_t stem)
{
    mamba_info dims = tiny_dims();
    dims.stem = stem;
    dims.patch_height = dims.patch_width = 0;
    dims.stem_width = 3;
    struct tiny_model tiny = tiny_build(dims, 6);
    tiny_put_u32(&tiny, 40, 2);
    expect_refused(&tiny, "patch_height");
    tiny_put_u32(&tiny, 40, 0);
    tiny_put_u32(&tiny, 44, 2);
    expect_refused(&tiny, "patch_width");
    tiny_put_u32(&tiny, 44, 0);
    tiny_put_u32(&tiny, 48, 0);
    expect_refused(&tiny, "stem_width");
    tiny_put_u32(&tiny, 48, 513);
    expect_refused(&tiny, "stem_width");
    for (uint32_t good = 1; good <= 512; good += 511) {
        tiny_put_u32(&tiny, 48, good);
        expect_in_range(&tiny, "stem_width", good);
    }
    tiny_free(&tiny);
}

static void test_float_fields(void)
{
    const struct {
        const char *name;
        size_t offset;
        float bad[7], good[3];
    } fields[] = {
        {"norm_eps",
         84,
         {0.0f, -0.0f, -1e-5f, 0.10000001f, INFINITY, NAN, -NAN},
         {1e-45f, 1e-5f, 0.1f}},
        {"pixel_mean",
         88,
         {-1e-45f, -0.1f, 1.0000001f, INFINITY, -INFINITY, NAN, -NAN},
         {0.0f, -0.0f, 1.0f}},
        {"pixel_std",
         92,
         {0.0f, -1.0f, 9.999999e-7f, 1000000.06f, INFINITY, NAN, -NAN},
         {1e-6f, 1.0f, 1e6f}},
    };
    struct tiny_model tiny = tiny_build(tiny_dims(), 7);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        uint32_t good = tiny_get_u32(&tiny, fields[i].offset);
        for (size_t j = 0; j < 7; j++) {
            tiny_put_f32(&tiny, fields[i].offset, fields[i].bad[j]);
            tiny_seal(&tiny);
            expect_refused(&tiny, fields[i].name);
        }
        for (size_t j = 0; j < 3; j++) {
            mamba_model *model;
            mamba_error error;
            tiny_put_f32(&tiny, fields[i].offset, fields[i].good[j]);
            tiny_seal(&tiny);
            CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message);
            mamba_model_close(model);
        }
        tiny_put_u32(&tiny, fields[i].offset, good);
    }
    tiny_free(&tiny);
}

static void test_reserved(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 8);
    for (size_t i = 100; i < TINY_HEADER; i++) {
        tiny.bytes[i] = 1;
        tiny_seal(&tiny);
        expect_refused(&tiny, "reserved");
        tiny.bytes[i] = 0;
    }
    tiny_free(&tiny);
}

/* Each dim is allowed, but together they demand too long a sequence, or another size. */
static void test_huge_claims(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 9);
    tiny_put_u32(&tiny, 20, 4096);
    tiny_put_u32(&tiny, 24, 4096);
    tiny_put_u32(&tiny, 40, 1);
    tiny_put_u32(&tiny, 44, 1);
    expect_refused(&tiny, "sequence length");
    tiny_put_u32(&tiny, 20, 16); /* 65,536 tokens: just allowed */
    expect_refused(&tiny, "file size");
    tiny_put_u32(&tiny, 20, 17);
    expect_refused(&tiny, "sequence length: got 69632 tokens");
    tiny_put_u32(&tiny, 20, 4096);
    tiny_put_u32(&tiny, 40, 4096);
    tiny_put_u32(&tiny, 44, 4096);
    const size_t offsets[] = {52, 56, 60, 64, 68, 72};
    const uint32_t most[] = {2048, 64, 256, 16, 8192, 2048};
    for (size_t i = 0; i < sizeof most / sizeof *most; i++)
        tiny_put_u32(&tiny, offsets[i], most[i]);
    tiny_seal(&tiny);
    expect_refused(&tiny, "file size");
    tiny_free(&tiny);
}

static void test_not_finite_weights(void)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};
    mamba_info dims = tiny_dims();
    dims.direction = 2;
    struct tiny_model tiny = tiny_build(dims, 11);
    for (size_t offset = TINY_HEADER; offset < tiny.size; offset += 4) {
        uint32_t good = tiny_get_u32(&tiny, offset);
        tiny_put_f32(&tiny, offset, bad[offset / 4 % 3]);
        tiny_seal(&tiny);
        expect_refused(&tiny, "tensor ");
        tiny_put_u32(&tiny, offset, good);
    }
    tiny_put_f32(&tiny, TINY_HEADER + 4 * 3, NAN);
    tiny_seal(&tiny);
    expect_refused(&tiny, "tensor stem.weight: float 3:");
    tiny_free(&tiny);
}

/* Padding must be 0 or -0; a weight may be any number. */
static void test_padding(void)
{
    mamba_info dims = tiny_dims();
    dims.direction = 2;
    dims.pos_embed = dims.local_conv = 1;
    dims.d_model = 16;
    dims.d_inner = 18;
    struct tiny_model tiny = tiny_build(dims, 14);
    size_t padding = 0;
    for (size_t offset = TINY_HEADER; offset < tiny.size; offset += 4) {
        const uint32_t good = tiny_get_u32(&tiny, offset);
        const bool is_weight = good != 0, is_small = offset % 8 == 0;
        mamba_model *model;
        padding += !is_weight;
        tiny_put_u32(&tiny, offset, is_small ? 1 : 0x80000000);
        tiny_seal(&tiny);
        if (is_small && !is_weight) {
            expect_refused(&tiny, "expected a finite number, or 0 as padding");
        } else {
            CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "byte %zu is refused", offset);
            mamba_model_close(model);
        }
        tiny_put_u32(&tiny, offset, good);
    }
    CHECK(padding > 1000, "%zu floats of padding", padding);
    tiny_free(&tiny);
}

/* A message names the first bad tensor and its first bad float, of any tensor. */
static void test_tensor_names(void)
{
    mamba_info dims = tiny_dims();
    dims.direction = 2;
    dims.pos_embed = dims.local_conv = 1;
    struct tiny_model tiny = tiny_build(dims, 13);
    const struct {
        const char *name;
        size_t rows; /* of 16 floats */
    } tensors[] = {
        {"stem.weight", 6},
        {"stem.bias", 1},
        {"pos_embed", 4},
        {"layers.0.local.weight", 9},
        {"layers.0.local.bias", 1},
        {"layers.0.in_proj.x", 5},
        {"layers.0.in_proj.z", 5},
        {"layers.0.conv1d.weight", 3},
        {"layers.0.conv1d.bias", 1},
        {"layers.0.x_proj", 7},
        {"layers.0.dt_proj.weight", 2},
        {"layers.0.dt_proj.bias", 1},
        {"layers.0.A", 4},
        {"layers.0.D", 1},
        {"layers.0.conv1d_b.weight", 3},
        {"layers.0.conv1d_b.bias", 1},
        {"layers.0.x_proj_b", 7},
        {"layers.0.dt_proj_b.weight", 2},
        {"layers.0.dt_proj_b.bias", 1},
        {"layers.0.A_b", 4},
        {"layers.0.D_b", 1},
        {"layers.0.out_proj", 7},
        {"layers.1.local.weight", 9},
    };
    size_t offset = TINY_HEADER;
    tiny_put_f32(&tiny, tiny.size - 4, NAN);
    tiny_put_f32(&tiny, tiny.size - 8, NAN);
    tiny_seal(&tiny);
    expect_refused(&tiny, "tensor head.bias: float 14:");
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        const uint32_t good = tiny_get_u32(&tiny, offset + 4);
        char expected[80];
        tiny_put_f32(&tiny, offset + 4, INFINITY);
        tiny_seal(&tiny);
        snprintf(expected, sizeof expected, "tensor %s: float 1:", tensors[i].name);
        expect_refused(&tiny, expected);
        tiny_put_u32(&tiny, offset + 4, good);
        offset += 64 * tensors[i].rows;
    }
    tiny_free(&tiny);
}

/* A message names the member of an ensemble; each member has tensors of its own. */
static void test_ensembles(void)
{
    mamba_info dims = tiny_dims();
    dims.members = 64;
    struct tiny_model tiny = tiny_build(dims, 12);
    const size_t member = (tiny.size - TINY_HEADER) / dims.members;
    tiny_put_f32(&tiny, TINY_HEADER + 63 * member + 4 * 3, NAN);
    tiny_seal(&tiny);
    expect_refused(&tiny, "tensor members.63.stem.weight: float 3:");
    tiny_put_f32(&tiny, TINY_HEADER + 63 * member + 4 * 3, 0.5f);
    for (uint32_t more = 0; more < 63; more++) {
        tiny_put_u32(&tiny, 96, more);
        tiny_seal(&tiny);
        expect_refused(&tiny, "file size");
    }
    tiny_put_u32(&tiny, 96, 63);
    tiny_seal(&tiny);
    mamba_model *model;
    mamba_error error;
    if (CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message))
        CHECK(mamba_model_info(model)->members == 64, "another number of members");
    mamba_model_close(model);
    tiny_free(&tiny);
}

static void expect_io_error(const char *path)
{
    mamba_model *model;
    mamba_error error;
    CHECK(mamba_model_open(&model, path, &error) == MAMBA_ERR_IO, "%s: %s", path, error.message);
    CHECK(!model, "%s: a model came back", path);
}

static void test_not_files(void)
{
    expect_io_error("/nonexistent/model.bin");
    expect_io_error("/tmp");
    expect_io_error("/dev/null");
    expect_io_error("");
    unlink(tiny_path());
    if (mkfifo(tiny_path(), 0600) == 0)
        expect_io_error(tiny_path()); /* and does not wait for a writer */
    unlink(tiny_path());

    char path[1000];
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    mamba_model *model;
    mamba_error error;
    CHECK(mamba_model_open(&model, path, &error) == MAMBA_ERR_IO &&
              strstr(error.message, "cannot open"),
          "long path: %s", error.message);
    CHECK(mamba_model_open(NULL, path, NULL) == MAMBA_ERR_ARGUMENT, "out NULL");
    CHECK(mamba_model_open(&model, NULL, &error) == MAMBA_ERR_ARGUMENT, "path NULL");
    mamba_model_close(NULL);
}

static void test_crc(void)
{
    const uint8_t text[] = "123456789The quick brown fox jumps over the lazy dog";
    CHECK(mamba_crc32(text, 0) == 0, "of nothing");
    CHECK(mamba_crc32(text, 9) == 0xCBF43926u, "zlib's check value");
    struct tiny_model tiny = tiny_build(tiny_dims(), 12);
    CHECK(mamba_crc32(tiny.bytes + TINY_FLAGS, tiny.size - TINY_FLAGS) ==
              tiny_get_u32(&tiny, TINY_CRC),
          "differs from tiny_seal's");
    tiny_free(&tiny);
    CHECK(mamba_crc32(text + 9, 43) == 0x414FA339u, "longer than a slice, unaligned");
}

int main(void)
{
    test_crc();
    test_accepts();
    test_parameters();
    test_every_truncation();
    test_trailing_bytes();
    test_identity();
    test_checksum();
    test_integer_fields();
    test_conv_stem_fields(1);
    test_conv_stem_fields(2);
    test_float_fields();
    test_reserved();
    test_huge_claims();
    test_not_finite_weights();
    test_padding();
    test_tensor_names();
    test_ensembles();
    test_not_files();
    return check_summary();
}
