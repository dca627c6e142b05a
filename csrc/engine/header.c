#include "header.h"

#include <float.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

enum { MAX_NAMES_BYTES = 1 << 16 };
_Static_assert(HEADER_BYTES + MAX_MEMBERS * MEMBER_BYTES + MAX_NAMES_BYTES == (int)FILE_HEAD_BYTES,
               "all before the tensors is read before them");

static const uint8_t MAGIC[8] = {0x89, 'M', 'A', 'M', 'B', 'A', '\r', '\n'};
enum { VERSION = 2, MAX_LENGTH = 65536 };
enum { MAX_ACTIVATIONS = 1 << 24 }; /* floats of one array */
enum {
    MAX_SIDE = 4096,
    MAX_CHANNELS = 4,
    MAX_CLASSES = 256,
    MAX_STEM_WIDTH = 512,
    MAX_D_MODEL = 2048,
    MAX_D_STATE = 256,
    MAX_D_INNER = 8192,
    MAX_DT_RANK = 2048
};

/* Bounds of the floats of any stem, and of all tensors of a layer; padding is in their factors. An
 * image has up to MAX_ACTIVATIONS values. */
#define STEM_BOUND (2 * (MAX_D_MODEL + PAD) * (uint64_t)MAX_ACTIVATIONS)
#define LAYER_BOUND                                                                                \
    (32 * (MAX_D_INNER + PAD) *                                                                    \
     (uint64_t)(MAX_D_MODEL + MAX_DT_RANK + MAX_D_STATE + MAX_CONV + PAD))
#define MEMBER_BOUND                                                                               \
    (STEM_BOUND + MAX_LAYERS * LAYER_BOUND +                                                       \
     (uint64_t)(MAX_D_MODEL + PAD) * (MAX_LENGTH + MAX_CLASSES + PAD))
_Static_assert(MAX_SIDE <= 1 << 12 && MAX_CHANNELS < 1 << 8, "pixels are counted in 32 bits");
_Static_assert(MAX_STEM_WIDTH < 1 << 14 && MAX_D_MODEL < 1 << 16 && MAX_D_STATE < 1 << 14 &&
                   MAX_D_INNER < 1 << 16 && MAX_DT_RANK < 1 << 16,
               "the bounds themselves do not overflow");
_Static_assert(9 * MAX_STEM_WIDTH * (uint64_t)(MAX_CHANNELS + MAX_STEM_WIDTH + MAX_D_MODEL) <=
                   STEM_BOUND,
               "a conv stem has fewer floats than the largest patch stem");
_Static_assert(MEMBER_BOUND < ((uint64_t)1 << 61) / MAX_MEMBERS, "a file has below 2^63 bytes");

/* Offsets in bytes; the other fields' are in the tables below. */
enum { VERSION_AT = 8, CRC_AT = 12, FLAGS_AT = 16, RESERVED_FROM = 64 };
enum { MEMBER_RESERVED_FROM = 56 }; /* in a record */
enum {
    FLAG_TIED_A = 1u << 0,
    FLAG_POS_EMBED = 1u << 1,
    FLAG_LOCAL_CONV = 1u << 2,
    FLAGS_KNOWN = (1u << 3) - 1
};

/* The place of a field, for messages. */
struct place {
    const char *path;
    char member[24]; /* "members.3." in an ensemble, else "" */
    mamba_error *error;
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
    if (version == (uint32_t)VERSION << 24)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "byte order: got a big-endian file, expected a little-endian one");
    if (version == 1)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "version: got 1, expected %d: run `python -m pipeline.export convert "
                          "OLD.bin NEW.bin`, for digits with `--preparation mnist`",
                          VERSION);
    if (version != VERSION)
        return mamba_fail(error, MAMBA_ERR_MODEL, path, "version: got %u, expected %d", version,
                          VERSION);
    return MAMBA_OK;
}

static mamba_status check_flags(const uint8_t *at, uint32_t known, const struct place *place)
{
    const uint32_t flags = get_u32(at);
    if (flags & ~known)
        return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                          "%sflags: got 0x%X, expected only bits of 0x%X", place->member, flags,
                          known);
    return MAMBA_OK;
}

/* A field of whole numbers. */
struct field {
    char name[13];
    uint8_t stem;   /* ANY_STEM, or the kind of stem that it belongs to: 0 with the other kind */
    uint8_t offset; /* in the header or record */
    uint8_t at;     /* in struct mamba_info */
    uint32_t min, max;
};
enum { ANY_STEM, PATCH_STEM, CONV_STEMS };

#define AT(field) offsetof(struct mamba_info, field)
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const struct field HEADER_FIELDS[] = {
    {"members", ANY_STEM, 20, AT(members), 1, MAX_MEMBERS},
    {"height", ANY_STEM, 24, AT(height), 1, MAX_SIDE},
    {"width", ANY_STEM, 28, AT(width), 1, MAX_SIDE},
    {"channels", ANY_STEM, 32, AT(channels), 1, MAX_CHANNELS},
    {"n_classes", ANY_STEM, 36, AT(n_classes), 2, MAX_CLASSES},
    {"preparation", ANY_STEM, 40, AT(preparation), PREPARATION_RESIZE, PREPARATION_MNIST},
    {"weight_type", ANY_STEM, 44, AT(weight_type), WEIGHT_TYPE_FLOAT32, WEIGHT_TYPE_INT8},
    {"names_bytes", ANY_STEM, 60, AT(names_bytes), NAMES_STEP, MAX_NAMES_BYTES},
};

static const struct field MEMBER_FIELDS[] = {
    {"stem", ANY_STEM, 4, AT(stem), STEM_PATCH, STEM_CONV3},
    {"patch_height", PATCH_STEM, 8, AT(patch_height), 1, MAX_SIDE},
    {"patch_width", PATCH_STEM, 12, AT(patch_width), 1, MAX_SIDE},
    {"stem_width", CONV_STEMS, 16, AT(stem_width), 1, MAX_STEM_WIDTH},
    {"d_model", ANY_STEM, 20, AT(d_model), 1, MAX_D_MODEL},
    {"n_layers", ANY_STEM, 24, AT(n_layers), 1, MAX_LAYERS},
    {"d_state", ANY_STEM, 28, AT(d_state), 1, MAX_D_STATE},
    {"d_conv", ANY_STEM, 32, AT(d_conv), 1, MAX_CONV},
    {"d_inner", ANY_STEM, 36, AT(d_inner), 1, MAX_D_INNER},
    {"dt_rank", ANY_STEM, 40, AT(dt_rank), 1, MAX_DT_RANK},
    {"direction", ANY_STEM, 44, AT(direction), DIRECTION_FORWARD, DIRECTION_CROSS},
    {"pool", ANY_STEM, 48, AT(pool), POOL_MEAN, POOL_LAST},
};

/* Reads n fields of the header or record `from`. */
static mamba_status read_fields(struct mamba_info *info, const uint8_t *from,
                                const struct field *fields, size_t n, const struct place *place)
{
    for (size_t i = 0; i < n; i++) {
        const struct field *field = &fields[i];
        const uint32_t got = get_u32(from + field->offset);
        const bool used =
            field->stem == ANY_STEM || (field->stem == PATCH_STEM) == (info->stem == STEM_PATCH);
        const uint32_t min = used ? field->min : 0, max = used ? field->max : 0;
        if (got < min || got > max)
            return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                              "%s%s: got %u, expected %u..%u", place->member, field->name, got, min,
                              max);
        memcpy((char *)info + field->at, &got, sizeof got);
    }
    return MAMBA_OK;
}

/* Sets info->length. The dims are in range, so no product here can overflow. */
static mamba_status set_length(struct mamba_info *info, const struct place *place)
{
    const bool patch = info->stem == STEM_PATCH;
    const bool high = patch && info->height % info->patch_height != 0;
    if (high || (patch && info->width % info->patch_width != 0))
        return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                          "%spatch_%s: got %u, expected a divisor of %u", place->member,
                          high ? "height" : "width", high ? info->patch_height : info->patch_width,
                          high ? info->height : info->width);
    info->length = mamba_grid_rows(info) * mamba_grid_columns(info);
    if (info->length > MAX_LENGTH)
        return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                          "%ssequence length: got %u tokens, expected up to %d", place->member,
                          info->length, MAX_LENGTH);
    return MAMBA_OK;
}

/* Limits the memory of a forward pass, which the dims of a small file could otherwise make any
 * size. */
static mamba_status check_activations(const struct mamba_info *info, const struct place *place)
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
        {"channels", pixels, info->channels},
        {"d_model", info->length, info->d_model},
        {"d_inner", info->length, info->d_inner},
        {"dt_rank + 2 d_state", info->length, info->dt_rank + 2 * info->d_state},
        {"stem_width", quarter, info->stem_width},
        {"half of stem_width", pixels, conv3 ? (info->stem_width + 1) / 2 : 0},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        const uint64_t floats = arrays[i].rows * arrays[i].columns;
        if (floats > MAX_ACTIVATIONS)
            return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                              "%s%s: got %u at each of %llu places, expected up to %d in all",
                              place->member, arrays[i].name, arrays[i].columns,
                              (unsigned long long)arrays[i].rows, MAX_ACTIVATIONS);
    }
    return MAMBA_OK;
}

/* Returns a float's place in an order: 0 and -0, numbers above 0, infinity, NaN, all others.
 * Integers have no mode in which a denormal counts as zero. */
static uint32_t order_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits == 1u << 31 ? 0 : bits;
}

/* A field of a float. */
struct real {
    char name[12];
    uint8_t offset; /* in the header or record */
    uint8_t at;     /* in struct mamba_info */
    bool or_zero;
    float min, max;
};

static const struct real HEADER_FLOATS[] = {
    {"exit_margin", 48, AT(exit_margin), true, FLT_MIN, 1e6f},
    {"pixel_mean", 52, AT(pixel_mean), false, 0.0f, 1.0f},
    {"pixel_std", 56, AT(pixel_std), false, 1e-6f, 1e6f},
};

static const struct real MEMBER_FLOATS[] = {
    {"norm_eps", 52, AT(norm_eps), false, FLT_TRUE_MIN, 0.1f}, /* above 0 */
};

static mamba_status check_float(float got, const struct real *real, mamba_status otherwise,
                                const struct place *place)
{
    const uint32_t order = order_of(got);
    const uint32_t min = order || !real->or_zero ? order_of(real->min) : 0;
    if (order >= min && order <= order_of(real->max))
        return MAMBA_OK;
    return mamba_fail(place->error, otherwise, place->path, "%s%s: got %.9g, expected %s%.9g..%.9g",
                      place->member, real->name, (double)got, real->or_zero ? "0 or " : "",
                      (double)real->min, (double)real->max);
}

mamba_status mamba_check_exit_margin(float got, mamba_error *error)
{
    return check_float(got, &HEADER_FLOATS[0], MAMBA_ERR_ARGUMENT,
                       &(const struct place){.error = error});
}

/* Reads n floats of the header or record `from`. */
static mamba_status read_floats(struct mamba_info *info, const uint8_t *from,
                                const struct real *reals, size_t n, const struct place *place)
{
    for (size_t i = 0; i < n; i++) {
        const struct real *real = &reals[i];
        float got;
        memcpy(&got, from + real->offset, sizeof got);
        const mamba_status status = check_float(got, real, MAMBA_ERR_MODEL, place);
        if (status != MAMBA_OK)
            return status;
        memcpy((char *)info + real->at, &got, sizeof got);
    }
    return MAMBA_OK;
}

static mamba_status check_reserved(const uint8_t *from, size_t first, size_t end,
                                   const struct place *place)
{
    for (size_t i = first; i < end; i++)
        if (from[i] != 0)
            return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                              "%sreserved byte %zu: got %u, expected 0", place->member, i, from[i]);
    return MAMBA_OK;
}

/* Checks the fields of the header that depend on more than their range. */
static mamba_status check_dependent(const struct mamba_info *info, const struct place *place)
{
    if (info->names_bytes % NAMES_STEP != 0)
        return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                          "names_bytes: got %u, expected a multiple of %d", info->names_bytes,
                          NAMES_STEP);
    if (info->preparation == PREPARATION_MNIST && info->channels != 1)
        return mamba_fail(place->error, MAMBA_ERR_MODEL, place->path,
                          "preparation: got %u (mnist), expected 0 (resize) for %u channels",
                          info->preparation, info->channels);
    return MAMBA_OK;
}

mamba_status mamba_check_header(struct mamba_info *info, const struct file_bytes *file,
                                const char *path, mamba_error *error)
{
    const uint8_t *header = file->data;
    const struct place place = {.path = path, .error = error};
    mamba_status status = check_identity(file, path, error);
    if (status != MAMBA_OK)
        return status;
    *info = (struct mamba_info){
        .version = VERSION,
        .crc32 = get_u32(header + CRC_AT),
        .file_bytes = file->size,
    };
    if ((status = check_flags(header + FLAGS_AT, 0, &place)) != MAMBA_OK ||
        (status = read_fields(info, header, HEADER_FIELDS, COUNT(HEADER_FIELDS), &place)) !=
            MAMBA_OK ||
        (status = check_dependent(info, &place)) != MAMBA_OK ||
        (status = read_floats(info, header, HEADER_FLOATS, COUNT(HEADER_FLOATS), &place)) !=
            MAMBA_OK ||
        (status = check_reserved(header, RESERVED_FROM, HEADER_BYTES, &place)) != MAMBA_OK)
        return status;
    if (file->size < mamba_tensors_at(info))
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "file size: got %zu bytes, expected at least the %zu before its tensors",
                          file->size, mamba_tensors_at(info));
    return MAMBA_OK;
}

/* Sets the shape of *info. */
static mamba_status check_member(struct mamba_info *info, const uint8_t *record,
                                 const struct place *place)
{
    mamba_status status = check_flags(record, FLAGS_KNOWN, place);
    const uint32_t flags = get_u32(record);
    info->tied_a = (flags & FLAG_TIED_A) != 0;
    info->pos_embed = (flags & FLAG_POS_EMBED) != 0;
    info->local_conv = (flags & FLAG_LOCAL_CONV) != 0;
    if (status != MAMBA_OK ||
        (status = read_fields(info, record, MEMBER_FIELDS, COUNT(MEMBER_FIELDS), place)) !=
            MAMBA_OK ||
        (status = set_length(info, place)) != MAMBA_OK ||
        (status = check_activations(info, place)) != MAMBA_OK ||
        (status = read_floats(info, record, MEMBER_FLOATS, COUNT(MEMBER_FLOATS), place)) !=
            MAMBA_OK)
        return status;
    return check_reserved(record, MEMBER_RESERVED_FROM, MEMBER_BYTES, place);
}

mamba_status mamba_check_members(struct mamba_model *model, const char *path, mamba_error *error)
{
    for (uint32_t i = 0; i < model->info.members; i++) {
        struct place place = {.path = path, .error = error};
        struct mamba_info *info = &model->members[i].info;
        if (model->info.members > 1)
            snprintf(place.member, sizeof place.member, "members.%u.", i);
        *info = model->info;
        const uint8_t *record = model->file.data + HEADER_BYTES + (size_t)i * MEMBER_BYTES;
        const mamba_status status = check_member(info, record, &place);
        if (status != MAMBA_OK)
            return status;
        model->members[i].same_shape =
            i > 0 && memcmp(info, &model->members[i - 1].info, sizeof *info) == 0;
    }
    model->info = model->members[0].info;
    return MAMBA_OK;
}
