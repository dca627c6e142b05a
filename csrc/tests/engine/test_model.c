/* The loader accepts what docs/format.md describes, refuses everything else, and says why. */
#define _POSIX_C_SOURCE 200809L

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "crc32.h"
#include "posix_on_windows.h"
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
        dims.channels = 1 + bits / 5 % 4;
        dims.preparation = dims.channels == 1 && bits % 7 == 0;
        dims.weight_type = bits / 7 % 2;
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
            expected.version = 2;
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
    const uint32_t versions[] = {0, 3, 0x01000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        tiny_put_u32(&tiny, 8, versions[i]);
        expect_refused(&tiny, "version: got");
    }
    tiny_put_u32(&tiny, 8, 0x02000000u);
    expect_refused(&tiny, "byte order");
    tiny_put_u32(&tiny, 8, 1);
    expect_refused(&tiny,
                   "run `python -m pipeline.export convert OLD.bin NEW.bin`, for digits with "
                   "`--preparation mnist`");
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
        {"flags", 16, {1, 0x80000000u, UINT32_MAX}, {0, 0}},
        {"members", 20, {0, 65, UINT32_MAX}, {1, 64}},
        {"height", 24, {0, 4097, UINT32_MAX}, {1, 4096}},
        {"width", 28, {0, 4097, UINT32_MAX}, {1, 4096}},
        {"channels", 32, {0, 5, UINT32_MAX}, {1, 4}},
        {"n_classes", 36, {1, 257, UINT32_MAX}, {2, 256}},
        {"preparation", 40, {2, 3, UINT32_MAX}, {0, 1}},
        {"weight_type", 44, {2, 3, UINT32_MAX}, {0, 1}},
        {"names_bytes", 60, {0, 96, 65600}, {64, 65536}},
        {"flags", 128, {8, 0x80000000u, UINT32_MAX}, {0, 7}},
        {"stem", 132, {3, 4, UINT32_MAX}, {0, 2}},
        {"patch_height", 136, {0, 3, 5}, {1, 4}},
        {"patch_width", 140, {0, 4, 7}, {1, 6}},
        {"stem_width", 144, {1, 512, UINT32_MAX}, {0, 0}},
        {"d_model", 148, {0, 2049, UINT32_MAX}, {1, 2048}},
        {"n_layers", 152, {0, 65, UINT32_MAX}, {1, 64}},
        {"d_state", 156, {0, 257, UINT32_MAX}, {1, 256}},
        {"d_conv", 160, {0, 17, UINT32_MAX}, {1, 16}},
        {"d_inner", 164, {0, 8193, UINT32_MAX}, {1, 8192}},
        {"dt_rank", 168, {0, 2049, UINT32_MAX}, {1, 2048}},
        {"direction", 172, {4, 5, UINT32_MAX}, {0, 3}},
        {"pool", 176, {2, 3, UINT32_MAX}, {0, 1}},
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
    tiny_put_u32(&tiny, 136, 2);
    expect_refused(&tiny, "patch_height");
    tiny_put_u32(&tiny, 136, 0);
    tiny_put_u32(&tiny, 140, 2);
    expect_refused(&tiny, "patch_width");
    tiny_put_u32(&tiny, 140, 0);
    tiny_put_u32(&tiny, 144, 0);
    expect_refused(&tiny, "stem_width");
    tiny_put_u32(&tiny, 144, 513);
    expect_refused(&tiny, "stem_width");
    for (uint32_t good = 1; good <= 512; good += 511) {
        tiny_put_u32(&tiny, 144, good);
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
        {"exit_margin",
         48,
         {-1e-45f, -0.1f, 1000000.06f, 1e-45f, FLT_MIN - 1e-45f, -FLT_MIN, NAN},
         {FLT_MIN, -0.0f, 1e6f}},
        {"norm_eps",
         180,
         {0.0f, -0.0f, -1e-5f, 0.10000001f, INFINITY, NAN, -NAN},
         {1e-45f, 1e-5f, 0.1f}},
        {"pixel_mean",
         52,
         {-1e-45f, -0.1f, 1.0000001f, INFINITY, -INFINITY, NAN, -NAN},
         {0.0f, -0.0f, 1.0f}},
        {"pixel_std",
         56,
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
    for (size_t i = 64; i < TINY_HEADER + TINY_RECORD; i++) {
        if (i == TINY_HEADER)
            i += 56; /* of the record */
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
    tiny_put_u32(&tiny, 24, 4096);
    tiny_put_u32(&tiny, 28, 4096);
    tiny_put_u32(&tiny, 136, 1);
    tiny_put_u32(&tiny, 140, 1);
    expect_refused(&tiny, "sequence length");
    tiny_put_u32(&tiny, 24, 16); /* 65,536 tokens: just allowed */
    expect_refused(&tiny, "file size");
    tiny_put_u32(&tiny, 24, 17);
    expect_refused(&tiny, "sequence length: got 69632 tokens");
    tiny_put_u32(&tiny, 24, 4096);
    tiny_put_u32(&tiny, 136, 4096);
    tiny_put_u32(&tiny, 140, 4096);
    const size_t offsets[] = {148, 152, 156, 160, 164, 168};
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
    for (size_t offset = tiny.tensors; offset < tiny.size; offset += 4) {
        uint32_t good = tiny_get_u32(&tiny, offset);
        tiny_put_f32(&tiny, offset, bad[offset / 4 % 3]);
        tiny_seal(&tiny);
        expect_refused(&tiny, "tensor ");
        tiny_put_u32(&tiny, offset, good);
    }
    tiny_put_f32(&tiny, tiny.tensors + 4 * 3, NAN);
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
    for (size_t offset = tiny.tensors; offset < tiny.size; offset += 4) {
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

/* Rows of int8 weights have any finite scale and any bytes, whose products are finite. */
static void test_int8_weights(void)
{
    mamba_info dims = tiny_dims();
    dims.weight_type = 1;
    struct tiny_model tiny = tiny_build(dims, 18);
    /* Counted by hand: rows of a scale and a byte per value, vectors of floats, no padding. */
    const size_t stem = 5 * (4 + 6) + 4 * 5, head = 3 * (4 + 5) + 4 * 3;
    const size_t scan = 3 * (4 + 7) + 10 * (4 + 7) + 7 * (4 + 2) + 4 * (4 + 7) + 3 * 4 * 7;
    const size_t layer = 2 * 7 * (4 + 5) + scan + 5 * (4 + 7);
    CHECK(tiny.size == tiny.tensors + stem + 2 * layer + head, "%zu bytes", tiny.size);
    const struct {
        const char *message;
        size_t row; /* from the first tensor */
        float scale;
    } bad[] = {
        {"tensor stem.weight: float 3: got", 3 * (4 + 6), NAN},
        {"tensor stem.weight: float 4: got", 4 * (4 + 6), INFINITY},
        {"tensor stem.bias: float 2: got", 5 * (4 + 6) + 4 * 2, -INFINITY},
        {"tensor layers.0.in_proj.z: float 1: got", stem + 8 * (4 + 5), 3e38f},
        {"tensor layers.1.A: float 16: got", stem + layer + layer - 55 - 28 - 3 * 11, -3e38f},
        {"tensor head.weight: float 2: got", stem + 2 * layer + 2 * (4 + 5), INFINITY},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const size_t offset = tiny.tensors + bad[i].row;
        const uint32_t good = tiny_get_u32(&tiny, offset);
        tiny.bytes[offset + 4] = 100; /* steps, whose product with 3e38 overflows */
        tiny_put_f32(&tiny, offset, bad[i].scale);
        tiny_seal(&tiny);
        expect_refused(&tiny, bad[i].message);
        tiny_put_u32(&tiny, offset, good);
    }
    static const float scales[] = {0.0f, -0.0f, -0.01f, 1e-45f, 0x1p120f, -0x1p120f};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        mamba_model *model;
        mamba_error error = {MAMBA_OK, ""};
        tiny_put_f32(&tiny, tiny.tensors, scales[i]);
        memset(tiny.bytes + tiny.tensors + 4, i % 2 ? 0x80 : 0x7F, 6);
        tiny_seal(&tiny);
        CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message);
        mamba_model_close(model);
    }
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
    size_t offset = tiny.tensors;
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
    const size_t member = (tiny.size - tiny.tensors) / dims.members;
    tiny_put_f32(&tiny, tiny.tensors + 63 * member + 4 * 3, NAN);
    tiny_seal(&tiny);
    expect_refused(&tiny, "tensor members.63.stem.weight: float 3:");
    tiny_put_f32(&tiny, tiny.tensors + 63 * member + 4 * 3, 0.5f);
    for (uint32_t fewer = 1; fewer < 64; fewer++) {
        tiny_put_u32(&tiny, 20, fewer);
        tiny_seal(&tiny);
        expect_refused(&tiny, "expected"); /* the names are not where they were */
    }
    tiny_put_u32(&tiny, 20, 64);
    for (size_t i = 0; i < 64; i += 9) {
        char expected[60];
        const size_t offset = TINY_HEADER + i * TINY_RECORD + 20;
        tiny_put_u32(&tiny, offset, 0);
        tiny_seal(&tiny);
        snprintf(expected, sizeof expected, "members.%zu.d_model: got 0", i);
        expect_refused(&tiny, expected);
        tiny_put_u32(&tiny, offset, dims.d_model);
    }
    tiny_seal(&tiny);
    mamba_model *model;
    mamba_error error;
    if (CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message))
        CHECK(mamba_model_info(model)->members == 64, "another number of members");
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* Members of different shapes, of which each has its own dims. */
static void test_mixed_members(void)
{
    mamba_info shapes[3] = {tiny_dims(), tiny_dims(), tiny_dims()};
    shapes[1].stem = 1;
    shapes[1].patch_height = shapes[1].patch_width = 0;
    shapes[1].stem_width = 3;
    shapes[2].d_model = 40;
    shapes[2].local_conv = 1;
    struct tiny_model tiny = tiny_build_mixed(shapes, 3, 15);
    mamba_model *model;
    mamba_error error;
    if (CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message)) {
        uint64_t parameters = 0;
        for (uint32_t i = 0; i < 3; i++) {
            mamba_info expected = *tiny_member(&tiny, i), got = *mamba_member_info(model, i);
            parameters += got.parameters;
            expected.version = 2;
            expected.crc32 = tiny_get_u32(&tiny, TINY_CRC);
            expected.file_bytes = tiny.size;
            expected.parameters = got.parameters;
            CHECK(memcmp(&expected, &got, sizeof got) == 0, "info of member %u differs", i);
        }
        const mamba_info *info = mamba_model_info(model);
        CHECK(info->parameters == parameters && info->d_model == shapes[0].d_model, "of the model");
        CHECK(!mamba_member_info(model, 3), "a fourth member");
    }
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* Replaces the class names, up to the end of their block of 64 bytes. */
static void put_names(struct tiny_model *tiny, const char *names, size_t size)
{
    uint8_t *block = tiny->bytes + TINY_HEADER + TINY_RECORD;
    memset(block, 0, 64);
    memcpy(block, names, size);
    tiny_seal(tiny);
}

static void test_class_names(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 16);
    static const char good[] = "cat\0\xC2\xA0\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF\0\"\\, ";
    mamba_model *model;
    mamba_error error;
    put_names(&tiny, good, sizeof good);
    if (CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message)) {
        const char *name = good;
        for (uint32_t i = 0; i < 3; i++, name += strlen(name) + 1)
            CHECK(strcmp(mamba_class_name(model, i), name) == 0, "class %u", i);
        CHECK(!mamba_class_name(model, 3) && !mamba_class_name(model, UINT32_MAX), "class 3");
    }
    mamba_model_close(model);
#define NAMES(text) text, sizeof text
    static const struct {
        char names[65];
        size_t size;
        char message[40];
    } bad[] = {
        {NAMES("a\0b\0"), "class name 2: got 0 bytes"},
        {NAMES("\0a\0b"), "class name 0: got 0 bytes"},
        {NAMES("a\0b\0a"), "class name 2: got the name of class 0"},
        {NAMES("a\0b\0b"), "class name 2: got the name of class 1"},
        {NAMES("a\0b\0c\0d"), "class names: got 0x64 as byte 6"},
        {NAMES("a\0b\x1F\0c"), "class name 1: got 0x1F as byte 1"},
        {NAMES("a\0b\x7F\0c"), "class name 1: got 0x7F as byte 1"},
        {NAMES("a\0b\0\x80"), "class name 2: got 0x80"},
        {NAMES("a\0b\0\xC2\x80"), "class name 2: got 0xC2"}, /* control characters */
        {NAMES("a\0b\0\xC2\x9F"), "class name 2: got 0xC2"},
        {NAMES("a\0b\0\xC3"), "class name 2: got 0xC3"},
        {NAMES("a\0b\0\xC1\xBF"), "class name 2: got 0xC1"}, /* overlong */
        {NAMES("a\0b\0\xE0\x9F\xBF"), "class name 2: got 0xE0"},
        {NAMES("a\0b\0\xF0\x8F\xBF\xBF"), "class name 2: got 0xF0"},
        {NAMES("a\0b\0\xED\xA0\x80"), "class name 2: got 0xED"}, /* surrogates */
        {NAMES("a\0b\0\xED\xBF\xBF"), "class name 2: got 0xED"},
        {NAMES("a\0b\0\xF4\x90\x80\x80"), "class name 2: got 0xF4"},
        {NAMES("a\0b\0\xF8\x88\x80\x80\x80"), "class name 2: got 0xF8"},
        {NAMES("a\0b\0\xFF"), "class name 2: got 0xFF"},
        {"0123456789012345678901234567890123456789012345678901234567890\0b", 64,
         "class name 2: got 0 bytes without"},
        {"012345678901234567890123456789012345678901234567890123456789\0b\0c", 64,
         "class name 2: got 1 bytes without"},
    };
#undef NAMES
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_names(&tiny, bad[i].names, bad[i].size);
        expect_refused(&tiny, bad[i].message);
    }
    tiny_free(&tiny);
}

/* The longest names fill the largest block, which a file with fewer must not have. */
static void test_longest_names(void)
{
    mamba_info dims = tiny_dims();
    dims.n_classes = 256;
    struct tiny_model tiny = tiny_build(dims, 17);
    const size_t names = TINY_HEADER + TINY_RECORD, old = tiny.dims.names_bytes;
    const size_t tensors = tiny.size - names - old;
    uint8_t *bytes = calloc(1, names + 65536 + tensors);
    if (!bytes)
        abort();
    memcpy(bytes, tiny.bytes, names);
    memcpy(bytes + names + 65536, tiny.bytes + names + old, tensors);
    uint8_t *short_names = tiny.bytes + names, *short_file = tiny.bytes;
    tiny.bytes = bytes;
    tiny.size = names + 65536 + tensors;
    tiny_put_u32(&tiny, 60, 65536);
    for (size_t i = 0; i < 256; i++) {
        memset(bytes + names + 256 * i, 'a', 255);
        bytes[names + 256 * i + 254] = (uint8_t)(0x80 + i % 64); /* 2 bytes of UTF-8 */
        bytes[names + 256 * i + 253] = (uint8_t)(0xC4 + i / 64);
    }
    mamba_model *model;
    mamba_error error;
    tiny_seal(&tiny);
    if (CHECK(tiny_open(&model, &tiny, &error) == MAMBA_OK, "%s", error.message))
        CHECK(strlen(mamba_class_name(model, 255)) == 255, "another length");
    mamba_model_close(model);
    memcpy(bytes + names + 255, "a", 1); /* instead of the first NUL */
    tiny_seal(&tiny);
    expect_refused(&tiny, "class name 0: got 511 bytes");
    memset(bytes + names, 0, 65536);
    memcpy(bytes + names, short_names, old);
    tiny_seal(&tiny);
    expect_refused(&tiny, "names_bytes: got 65536, expected 960");
    free(short_file);
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
    test_int8_weights();
    test_tensor_names();
    test_ensembles();
    test_mixed_members();
    test_class_names();
    test_longest_names();
    test_not_files();
    return check_summary();
}
