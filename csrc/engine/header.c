#include "header.h"

#include <float.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "model.h"

_Static_assert((int)HEADER_BYTES <= (int)FILE_HEAD_BYTES, "the header is read before the rest");

static const uint8_t MAGIC[8] = {0x89, 'M', 'A', 'M', 'B', 'A', '\r', '\n'};
enum { VERSION = 1, MAX_LENGTH = 65536 };
enum { MAX_ACTIVATIONS = 1 << 24 }; /* floats of one array */
enum {
    MAX_SIDE = 4096,
    MAX_CLASSES = 256,
    MAX_STEM_WIDTH = 512,
    MAX_D_MODEL = 2048,
    MAX_D_STATE = 256,
    MAX_D_INNER = 8192,
    MAX_DT_RANK = 2048
};

/* Bounds of the floats of any stem, and of all tensors of a layer; padding is in their factors. */
#define STEM_BOUND (2 * (MAX_D_MODEL + PAD) * (uint64_t)MAX_SIDE * MAX_SIDE)
#define LAYER_BOUND                                                                                \
    (32 * (MAX_D_INNER + PAD) *                                                                    \
     (uint64_t)(MAX_D_MODEL + MAX_DT_RANK + MAX_D_STATE + MAX_CONV + PAD))
#define MEMBER_BOUND                                                                               \
    (STEM_BOUND + MAX_LAYERS * LAYER_BOUND +                                                       \
     (uint64_t)(MAX_D_MODEL + PAD) * (MAX_LENGTH + MAX_CLASSES + PAD))
_Static_assert(MAX_SIDE < 1 << 16, "pixels are counted in 32 bits");
_Static_assert(MAX_STEM_WIDTH < 1 << 14 && MAX_D_MODEL < 1 << 16 && MAX_D_STATE < 1 << 14 &&
                   MAX_D_INNER < 1 << 16 && MAX_DT_RANK < 1 << 16,
               "the bounds themselves do not overflow");
_Static_assert(9 * MAX_STEM_WIDTH * (uint64_t)(MAX_STEM_WIDTH + MAX_D_MODEL) <= STEM_BOUND,
               "a conv stem has fewer floats than the largest patch stem");
_Static_assert(MEMBER_BOUND < ((uint64_t)1 << 61) / MAX_MEMBERS, "a file has below 2^63 bytes");

/* Offsets in bytes; the other fields' are in the tables below. */
enum { VERSION_AT = 8, CRC_AT = 12, FLAGS_AT = 16, RESERVED_FROM = 100 };
enum {
    FLAG_TIED_A = 1u << 0,
    FLAG_POS_EMBED = 1u << 1,
    FLAG_LOCAL_CONV = 1u << 2,
    FLAGS_KNOWN = (1u << 3) - 1
};

static uint32_t get_u32(const uint8_t *data)
{
    uint32_t value;
    memcpy(&value, data, sizeof value);
    return value;
}

static mamba_status check_identity(const struct file_bytes *file, const char *path,
                                   mamba_error *error)
{
    if (file->size < HEADER_BYTES)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "file size: got %zu bytes, expected at least the %d of a header",
                          file->size, HEADER_BYTES);
    if (memcmp(file->data, MAGIC, sizeof MAGIC) != 0) {
        char got[3 * sizeof MAGIC + 1]; /* "89 4D ... 0A " */
        for (size_t i = 0; i < sizeof MAGIC; i++)
            snprintf(got + 3 * i, 4, "%02X ", file->data[i]);
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "magic: got %.23s, expected 89 4D 41 4D 42 41 0D 0A (not a model file?)",
                          got);
    }
    const uint16_t one = 1;
    if (*(const uint8_t *)&one != 1)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "byte order: got a big-endian machine, expected a little-endian one, "
                          "because model files are used in place");
    uint32_t version = get_u32(file->data + VERSION_AT);
    if (version == 0x01000000u)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "byte order: got version %u, which is 1 in big-endian, expected a "
                          "little-endian file",
                          version);
    if (version != VERSION)
        return mamba_fail(error, MAMBA_ERR_MODEL, path, "version: got %u, expected %d", version,
                          VERSION);
    return MAMBA_OK;
}

/* A field of whole numbers. */
struct field {
    char name[13];
    uint8_t stem;   /* ANY_STEM, or the kind of stem that it belongs to: 0 with the other kind */
    uint8_t offset; /* in the file */
    uint8_t at;     /* in struct mamba_info */
    uint32_t min, max;
};
enum { ANY_STEM, PATCH_STEM, CONV_STEMS };

static mamba_status read_fields(struct mamba_info *info, const uint8_t *header, const char *path,
                                mamba_error *error)
{
#define AT(field) offsetof(struct mamba_info, field)
    static const struct field FIELDS[] = {
        {"height", ANY_STEM, 20, AT(height), 1, MAX_SIDE},
        {"width", ANY_STEM, 24, AT(width), 1, MAX_SIDE},
        {"channels", ANY_STEM, 28, AT(channels), 1, 1},
        {"n_classes", ANY_STEM, 32, AT(n_classes), 2, MAX_CLASSES},
        {"stem", ANY_STEM, 36, AT(stem), STEM_PATCH, STEM_CONV3},
        {"patch_height", PATCH_STEM, 40, AT(patch_height), 1, MAX_SIDE},
        {"patch_width", PATCH_STEM, 44, AT(patch_width), 1, MAX_SIDE},
        {"stem_width", CONV_STEMS, 48, AT(stem_width), 1, MAX_STEM_WIDTH},
        {"d_model", ANY_STEM, 52, AT(d_model), 1, MAX_D_MODEL},
        {"n_layers", ANY_STEM, 56, AT(n_layers), 1, MAX_LAYERS},
        {"d_state", ANY_STEM, 60, AT(d_state), 1, MAX_D_STATE},
        {"d_conv", ANY_STEM, 64, AT(d_conv), 1, MAX_CONV},
        {"d_inner", ANY_STEM, 68, AT(d_inner), 1, MAX_D_INNER},
        {"dt_rank", ANY_STEM, 72, AT(dt_rank), 1, MAX_DT_RANK},
        {"direction", ANY_STEM, 76, AT(direction), DIRECTION_FORWARD, DIRECTION_CROSS},
        {"pool", ANY_STEM, 80, AT(pool), POOL_MEAN, POOL_LAST},
        {"more_members", ANY_STEM, 96, AT(members), 0, MAX_MEMBERS - 1},
    };
#undef AT
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        const struct field *field = &FIELDS[i];
        const uint32_t got = get_u32(header + field->offset);
        const bool used =
            field->stem == ANY_STEM || (field->stem == PATCH_STEM) == (info->stem == STEM_PATCH);
        const uint32_t min = used ? field->min : 0, max = used ? field->max : 0;
        if (got < min || got > max)
            return mamba_fail(error, MAMBA_ERR_MODEL, path, "%s: got %u, expected %u..%u",
                              field->name, got, min, max);
        memcpy((char *)info + field->at, &got, sizeof got);
    }
    info->members++; /* the file counts the members after the first */
    return MAMBA_OK;
}

/* Sets info->length. The dims are in range, so no product here can overflow. */
static mamba_status set_length(struct mamba_info *info, const char *path, mamba_error *error)
{
    const bool patch = info->stem == STEM_PATCH;
    if (patch && info->height % info->patch_height != 0)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "patch_height: got %u, expected a divisor of height %u",
                          info->patch_height, info->height);
    if (patch && info->width % info->patch_width != 0)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "patch_width: got %u, expected a divisor of width %u", info->patch_width,
                          info->width);
    info->length = mamba_grid_rows(info) * mamba_grid_columns(info);
    if (info->length > MAX_LENGTH)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "sequence length: got %u tokens, expected up to %d", info->length,
                          MAX_LENGTH);
    return MAMBA_OK;
}

/* Limits the memory of a forward pass, which the dims of a small file could otherwise make any
 * size. */
static mamba_status check_activations(const struct mamba_info *info, const char *path,
                                      mamba_error *error)
{
    const uint64_t pixels = (uint64_t)info->height * info->width;
    const uint64_t quarter =
        (uint64_t)mamba_conv_side(info->height, 2) * mamba_conv_side(info->width, 2);
    const bool conv3 = info->stem == STEM_CONV3;
    const struct {
        const char *name;
        uint64_t rows;
        uint32_t columns;
    } arrays[] = {
        {"d_model", info->length, info->d_model},
        {"d_inner", info->length, info->d_inner},
        {"dt_rank + 2 d_state", info->length, info->dt_rank + 2 * info->d_state},
        {"stem_width", quarter, info->stem_width},
        {"half of stem_width", pixels, conv3 ? (info->stem_width + 1) / 2 : 0},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        const uint64_t floats = arrays[i].rows * arrays[i].columns;
        if (floats > MAX_ACTIVATIONS)
            return mamba_fail(error, MAMBA_ERR_MODEL, path,
                              "%s: got %u at each of %llu places, expected up to %d in all",
                              arrays[i].name, arrays[i].columns, (unsigned long long)arrays[i].rows,
                              MAX_ACTIVATIONS);
    }
    return MAMBA_OK;
}

/* Returns a float's place in the order of all floats. Integers have no mode in which a denormal
 * counts as zero; NaN is beyond infinity. */
static int64_t order_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const int64_t magnitude = bits & 0x7FFFFFFFu;
    return bits >> 31 ? -magnitude : magnitude;
}

static mamba_status read_floats(struct mamba_info *info, const uint8_t *header, const char *path,
                                mamba_error *error)
{
    const struct {
        const char *name;
        size_t offset; /* in the file */
        float *out, min, max;
    } fields[] = {
        {"norm_eps", 84, &info->norm_eps, FLT_TRUE_MIN, 0.1f}, /* above 0 */
        {"pixel_mean", 88, &info->pixel_mean, 0.0f, 1.0f},
        {"pixel_std", 92, &info->pixel_std, 1e-6f, 1e6f},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        float got;
        memcpy(&got, header + fields[i].offset, sizeof got);
        if (order_of(got) < order_of(fields[i].min) || order_of(got) > order_of(fields[i].max))
            return mamba_fail(error, MAMBA_ERR_MODEL, path, "%s: got %.9g, expected %.9g..%.9g",
                              fields[i].name, (double)got, (double)fields[i].min,
                              (double)fields[i].max);
        *fields[i].out = got;
    }
    return MAMBA_OK;
}

mamba_status mamba_check_header(struct mamba_info *info, const struct file_bytes *file,
                                const char *path, mamba_error *error)
{
    const uint8_t *header = file->data;
    mamba_status status = check_identity(file, path, error);
    if (status != MAMBA_OK)
        return status;
    const uint32_t flags = get_u32(header + FLAGS_AT);
    if (flags & ~(uint32_t)FLAGS_KNOWN)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "flags: got 0x%X, expected only bits of 0x%X", flags,
                          (unsigned)FLAGS_KNOWN);
    *info = (struct mamba_info){
        .version = VERSION,
        .crc32 = get_u32(header + CRC_AT),
        .tied_a = (flags & FLAG_TIED_A) != 0,
        .pos_embed = (flags & FLAG_POS_EMBED) != 0,
        .local_conv = (flags & FLAG_LOCAL_CONV) != 0,
        .file_bytes = file->size,
    };
    if ((status = read_fields(info, header, path, error)) != MAMBA_OK ||
        (status = set_length(info, path, error)) != MAMBA_OK ||
        (status = check_activations(info, path, error)) != MAMBA_OK ||
        (status = read_floats(info, header, path, error)) != MAMBA_OK)
        return status;
    for (size_t i = RESERVED_FROM; i < HEADER_BYTES; i++)
        if (header[i] != 0)
            return mamba_fail(error, MAMBA_ERR_MODEL, path, "reserved byte %zu: got %u, expected 0",
                              i, header[i]);
    return MAMBA_OK;
}
