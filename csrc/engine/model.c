#include "model.h"

#include <float.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crc32.h"
#include "error.h"
#include "finite.h"
#include "fold.h"

_Static_assert(sizeof(float) == 4, "model files hold IEEE 754 binary32");
_Static_assert((int)HEADER_BYTES <= (int)FILE_HEAD_BYTES, "the header is read before the rest");

static const uint8_t MAGIC[8] = {0x89, 'M', 'A', 'M', 'B', 'A', '\r', '\n'};
enum { MAX_ACTIVATIONS = 1 << 24 }; /* floats of one array */
enum { VERSION = 1, CRC_OFFSET = 12, CHECKED_FROM = 16, RESERVED_FROM = 100 };
enum {
    FLAG_TIED_A = 1u << 0,
    FLAG_POS_EMBED = 1u << 1,
    FLAG_LOCAL_CONV = 1u << 2,
    FLAGS_KNOWN = (1u << 3) - 1
};

/* ---- header ---------------------------------------------------------------------------- */

static uint32_t get_u32(const uint8_t *data)
{
    uint32_t value;
    memcpy(&value, data, sizeof value);
    return value;
}

static float get_f32(const uint8_t *data)
{
    float value;
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
        char got[3 * sizeof MAGIC];
        for (size_t i = 0; i < sizeof MAGIC; i++) {
            static const char hex[] = "0123456789ABCDEF";
            got[3 * i] = hex[file->data[i] >> 4];
            got[3 * i + 1] = hex[file->data[i] & 15];
            got[3 * i + 2] = i + 1 < sizeof MAGIC ? ' ' : '\0';
        }
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "magic: got %s, expected 89 4D 41 4D 42 41 0D 0A (not a model file?)",
                          got);
    }
    const uint16_t one = 1;
    if (*(const uint8_t *)&one != 1)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "byte order: got a big-endian machine, expected a little-endian one: "
                          "model files are, and are used in place");
    uint32_t version = get_u32(file->data + 8);
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

static void read_header(struct mamba_info *info, const struct file_bytes *file)
{
    const uint8_t *h = file->data;
    uint32_t flags = get_u32(h + 16);
    *info = (struct mamba_info){
        .version = get_u32(h + 8),
        .crc32 = get_u32(h + CRC_OFFSET),
        .tied_a = (flags & FLAG_TIED_A) != 0,
        .pos_embed = (flags & FLAG_POS_EMBED) != 0,
        .local_conv = (flags & FLAG_LOCAL_CONV) != 0,
        .height = get_u32(h + 20),
        .width = get_u32(h + 24),
        .channels = get_u32(h + 28),
        .n_classes = get_u32(h + 32),
        .stem = get_u32(h + 36),
        .patch_height = get_u32(h + 40),
        .patch_width = get_u32(h + 44),
        .stem_width = get_u32(h + 48),
        .d_model = get_u32(h + 52),
        .n_layers = get_u32(h + 56),
        .d_state = get_u32(h + 60),
        .d_conv = get_u32(h + 64),
        .d_inner = get_u32(h + 68),
        .dt_rank = get_u32(h + 72),
        .direction = get_u32(h + 76),
        .pool = get_u32(h + 80),
        .norm_eps = get_f32(h + 84),
        .pixel_mean = get_f32(h + 88),
        .pixel_std = get_f32(h + 92),
        .members = get_u32(h + 96), /* without the first; check_header adds it */
        .file_bytes = file->size,
    };
}

/* A field of whole numbers. One of a stem is 0 where the stem is another. */
struct range {
    char name[13];
    uint8_t of;  /* ANY, or the stem that it belongs to */
    uint16_t at; /* in mamba_info */
    uint32_t min, max;
};
enum { ANY, PATCH_STEM, CONV_STEMS };

static mamba_status check_dims(const struct mamba_info *info, const char *path, mamba_error *error)
{
#define AT(field) offsetof(struct mamba_info, field)
    static const struct range ranges[] = {
        {"height", ANY, AT(height), 1, 4096},
        {"width", ANY, AT(width), 1, 4096},
        {"channels", ANY, AT(channels), 1, 1},
        {"n_classes", ANY, AT(n_classes), 2, 256},
        {"stem", ANY, AT(stem), STEM_PATCH, STEM_CONV3},
        {"patch_height", PATCH_STEM, AT(patch_height), 1, 4096},
        {"patch_width", PATCH_STEM, AT(patch_width), 1, 4096},
        {"stem_width", CONV_STEMS, AT(stem_width), 1, 512},
        {"d_model", ANY, AT(d_model), 1, 2048},
        {"n_layers", ANY, AT(n_layers), 1, MAX_LAYERS},
        {"d_state", ANY, AT(d_state), 1, 256},
        {"d_conv", ANY, AT(d_conv), 1, MAX_CONV},
        {"d_inner", ANY, AT(d_inner), 1, 8192},
        {"dt_rank", ANY, AT(dt_rank), 1, 2048},
        {"direction", ANY, AT(direction), DIRECTION_FORWARD, DIRECTION_CROSS},
        {"pool", ANY, AT(pool), POOL_MEAN, POOL_LAST},
        {"more_members", ANY, AT(members), 0, MAX_MEMBERS - 1},
    };
#undef AT
    const uint8_t other = info->stem == STEM_PATCH ? CONV_STEMS : PATCH_STEM;
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const struct range *range = &ranges[i];
        const bool unused = range->of == other;
        const uint32_t min = unused ? 0 : range->min, max = unused ? 0 : range->max;
        uint32_t got;
        memcpy(&got, (const char *)info + range->at, sizeof got);
        if (got < min || got > max)
            return mamba_fail(error, MAMBA_ERR_MODEL, path, "%s: got %u, expected %u..%u",
                              range->name, got, min, max);
    }
    return MAMBA_OK;
}

static mamba_status check_floats(const struct mamba_info *info, const char *path,
                                 mamba_error *error)
{
    const struct {
        const char *name;
        float got, min, max;
    } fields[] = {
        {"norm_eps", info->norm_eps, FLT_TRUE_MIN, 0.1f}, /* above 0 */
        {"pixel_mean", info->pixel_mean, 0.0f, 1.0f},
        {"pixel_std", info->pixel_std, 1e-6f, 1e6f},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const float got = fields[i].got;
        if (!mamba_is_finite(got) || got < fields[i].min || got > fields[i].max)
            return mamba_fail(error, MAMBA_ERR_MODEL, path, "%s: got %.9g, expected %.9g..%.9g",
                              fields[i].name, (double)got, (double)fields[i].min,
                              (double)fields[i].max);
    }
    return MAMBA_OK;
}

/* Sets info->length; the dims have been checked, so that no product here can overflow. */
static mamba_status check_length(struct mamba_info *info, const char *path, mamba_error *error)
{
    if (info->stem != STEM_PATCH) {
        info->length = mamba_grid_rows(info) * mamba_strided(mamba_strided(info->width, 2), 2);
    } else {
        if (info->height % info->patch_height != 0)
            return mamba_fail(error, MAMBA_ERR_MODEL, path,
                              "patch_height: got %u, expected a divisor of height %u",
                              info->patch_height, info->height);
        if (info->width % info->patch_width != 0)
            return mamba_fail(error, MAMBA_ERR_MODEL, path,
                              "patch_width: got %u, expected a divisor of width %u",
                              info->patch_width, info->width);
        info->length = (info->height / info->patch_height) * (info->width / info->patch_width);
    }
    if (info->length > MAX_LENGTH)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "sequence length: got %u tokens, expected up to %d", info->length,
                          MAX_LENGTH);
    return MAMBA_OK;
}

/* A few bytes of dims could otherwise demand any amount of memory to compute with. */
static mamba_status check_activations(const struct mamba_info *info, const char *path,
                                      mamba_error *error)
{
    const uint64_t pixels = (uint64_t)info->height * info->width;
    const uint64_t quarter =
        (uint64_t)mamba_strided(info->height, 2) * mamba_strided(info->width, 2);
    const bool conv3 = info->stem == STEM_CONV3;
    const uint32_t bc = info->dt_rank + 2 * info->d_state;
    const struct {
        const char *name;
        uint64_t rows;
        uint32_t columns;
    } arrays[] = {
        {"d_model", info->length, info->d_model},
        {"d_inner", info->length, info->d_inner},
        {"dt_rank + 2 d_state", info->length, bc},
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

static mamba_status check_header(struct mamba_info *info, const struct file_bytes *file,
                                 const char *path, mamba_error *error)
{
    mamba_status status = check_identity(file, path, error);
    if (status != MAMBA_OK)
        return status;
    read_header(info, file);
    uint32_t flags = get_u32(file->data + 16);
    if (flags & ~(uint32_t)FLAGS_KNOWN)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "flags: got 0x%X, expected only bits of 0x%X", flags,
                          (unsigned)FLAGS_KNOWN);
    if ((status = check_dims(info, path, error)) != MAMBA_OK ||
        (status = check_length(info, path, error)) != MAMBA_OK ||
        (status = check_activations(info, path, error)) != MAMBA_OK ||
        (status = check_floats(info, path, error)) != MAMBA_OK)
        return status;
    for (size_t i = RESERVED_FROM; i < HEADER_BYTES; i++) {
        if (file->data[i] != 0)
            return mamba_fail(error, MAMBA_ERR_MODEL, path, "reserved byte %zu: got %u, expected 0",
                              i, file->data[i]);
    }
    info->members++;
    return MAMBA_OK;
}

/* ---- tensors --------------------------------------------------------------------------- */

/* A walk over the tensors in file order. One walk without a base measures the file, a second one
 * with it sets the pointers: size and layout cannot disagree. */
struct walk {
    const float *base;   /* first tensor, or NULL to measure only */
    uint64_t floats;     /* passed so far, with padding */
    uint64_t parameters; /* passed so far, without */
    bool overflow;       /* floats no longer holds the true count */
    /* Where the walk is, for messages; layer -1: outside. */
    bool in_ensemble;
    int member, layer, scan;
    char bad_tensor[64]; /* the first tensor with a NaN or infinity, or "" */
    uint64_t bad_index;  /* its first bad float, counted in file order */
};

static uint64_t checked_multiply(struct walk *walk, uint64_t a, uint64_t b)
{
    if (b != 0 && a > UINT64_MAX / b) {
        walk->overflow = true;
        return 0;
    }
    return a * b;
}

static void checked_advance(struct walk *walk, uint64_t floats)
{
    /* Sizes are counted in bytes in the end: leave room for the factor and the header. */
    if (floats > UINT64_MAX / 8 - walk->floats)
        walk->overflow = true;
    else
        walk->floats += floats;
}

static void find_not_finite(struct walk *walk, const char *name, const float *data, uint64_t n)
{
    uint32_t any = 0; /* no early exit: this loop vectorises, and good files are the rule */
    for (uint64_t i = 0; i < n; i++)
        any |= !mamba_is_finite(data[i]);
    if (!any || walk->bad_tensor[0])
        return;
    /* Bounded, because a mapped file may change between two looks at it. */
    while (walk->bad_index + 1 < n && mamba_is_finite(data[walk->bad_index]))
        walk->bad_index++;
    char *text = walk->bad_tensor;
    size_t used = 0;
    if (walk->in_ensemble)
        used = (size_t)snprintf(text, sizeof walk->bad_tensor, "members.%d.", walk->member);
    if (walk->layer >= 0)
        used += (size_t)snprintf(text + used, sizeof walk->bad_tensor - used, "layers.%d.",
                                 walk->layer);
    /* The second scan's tensors are conv1d_b.weight, x_proj_b, ... */
    const size_t head = strcspn(name, ".");
    const char *scan = walk->scan ? "_b" : "";
    snprintf(text + used, sizeof walk->bad_tensor - used, "%.*s%s%s", (int)head, name, scan,
             name + head);
}

static const float *pass(struct walk *walk, const char *name, uint64_t padded, uint64_t real)
{
    const float *tensor = walk->base ? walk->base + walk->floats : NULL;
    if (tensor)
        find_not_finite(walk, name, tensor, padded);
    checked_advance(walk, padded);
    walk->parameters += real;
    return tensor;
}

/* T(rows, n) of format.md. */
static const float *table(struct walk *walk, const char *name, uint64_t rows, uint64_t n)
{
    return pass(walk, name, checked_multiply(walk, rows, mamba_pad(n)), rows * n);
}

/* V(n) of format.md. */
static const float *vector(struct walk *walk, const char *name, uint64_t n)
{
    return table(walk, name, 1, n);
}

/* P(out, in) of format.md. */
static const float *panels(struct walk *walk, const char *name, uint64_t out, uint64_t in)
{
    return pass(walk, name, checked_multiply(walk, mamba_pad(out), in), out * in);
}

size_t mamba_stem_convs(const struct mamba_info *info, struct stem_conv convs[MAX_STEM_CONVS])
{
    size_t n = 0;
    uint32_t channels = 1;
    if (info->stem == STEM_PATCH)
        return 0;
    if (info->stem == STEM_CONV3) {
        convs[n++] = (struct stem_conv){channels, (info->stem_width + 1) / 2, 1};
        channels = convs[0].out;
    }
    convs[n++] = (struct stem_conv){channels, info->stem_width, 2};
    convs[n++] = (struct stem_conv){info->stem_width, info->d_model, 2};
    return n;
}

static void walk_stem(struct walk *walk, const struct mamba_info *info,
                      struct member_weights *member)
{
    const uint64_t d_model = info->d_model;
    if (info->stem == STEM_PATCH) {
        const uint64_t pixels = (uint64_t)info->patch_height * info->patch_width;
        member->stem_weight = panels(walk, "stem.weight", d_model, pixels);
        member->stem_bias = vector(walk, "stem.bias", d_model);
    }
    struct stem_conv convs[MAX_STEM_CONVS];
    const size_t n = mamba_stem_convs(info, convs);
    for (size_t i = 0; i < n; i++) {
        /* Not pointers, which the loader would have to relocate, in a file that is to be small. */
        static const char weights[][18] = {"stem.conv1.weight", "stem.conv2.weight",
                                           "stem.conv3.weight"};
        static const char biases[][16] = {"stem.conv1.bias", "stem.conv2.bias", "stem.conv3.bias"};
        const uint64_t inputs = 9 * (uint64_t)convs[i].in;
        member->stem_convs[i].weight = panels(walk, weights[i], convs[i].out, inputs);
        member->stem_convs[i].bias = vector(walk, biases[i], convs[i].out);
    }
    member->pos_embed = info->pos_embed ? table(walk, "pos_embed", info->length, d_model) : NULL;
}

static void walk_scan(struct walk *walk, const struct mamba_info *info, struct scan_weights *scan)
{
    const uint64_t d_inner = info->d_inner, d_state = info->d_state;
    scan->conv_weight = table(walk, "conv1d.weight", info->d_conv, d_inner);
    scan->conv_bias = vector(walk, "conv1d.bias", d_inner);
    scan->x_proj = panels(walk, "x_proj", info->dt_rank + 2 * d_state, d_inner);
    scan->dt_weight = panels(walk, "dt_proj.weight", d_inner, info->dt_rank);
    scan->dt_bias = vector(walk, "dt_proj.bias", d_inner);
    scan->a = table(walk, "A", info->tied_a ? 1 : d_state, d_inner);
    scan->d = vector(walk, "D", d_inner);
}

static void walk_member(struct walk *walk, const struct mamba_info *info,
                        struct member_weights *member)
{
    const uint64_t d_model = info->d_model, d_inner = info->d_inner;
    walk->layer = -1;
    walk_stem(walk, info, member);
    for (walk->layer = 0; walk->layer < (int)info->n_layers; walk->layer++) {
        struct layer_weights *layer = &member->layers[walk->layer];
        if (info->local_conv) {
            layer->local_weight = table(walk, "local.weight", 9, d_model);
            layer->local_bias = vector(walk, "local.bias", d_model);
        }
        layer->in_proj[0].weight = panels(walk, "in_proj.x", d_inner, d_model);
        layer->in_proj[1].weight = panels(walk, "in_proj.z", d_inner, d_model);
        for (walk->scan = 0; walk->scan < (int)mamba_scans_per_layer(info); walk->scan++)
            walk_scan(walk, info, &layer->scan[walk->scan]);
        walk->scan = 0;
        layer->out_proj = panels(walk, "out_proj", d_model, d_inner);
    }
    walk->layer = -1;
    member->head_weight = panels(walk, "head.weight", info->n_classes, d_model);
    member->head_bias = vector(walk, "head.bias", info->n_classes);
}

static void walk_tensors(struct walk *walk, struct mamba_model *model)
{
    const struct mamba_info *info = &model->info;
    walk->in_ensemble = info->members > 1;
    for (walk->member = 0; walk->member < (int)info->members; walk->member++)
        walk_member(walk, info, &model->members[walk->member]);
}

static mamba_status check_tensors(struct mamba_model *model, const char *path, mamba_error *error)
{
    struct file_bytes *file = &model->file;
    struct walk measure = {0};
    walk_tensors(&measure, model);
    uint64_t expected = HEADER_BYTES + measure.floats * sizeof(float);
    if (measure.overflow)
        return mamba_fail(error, MAMBA_ERR_MODEL, path, "dims: the size they demand overflows");
    if (file->size != expected)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "file size: got %zu bytes, expected exactly the %llu of its dims",
                          file->size, (unsigned long long)expected);
    model->info.parameters = measure.parameters;
    mamba_status status = mamba_file_rest(file, path, error);
    if (status != MAMBA_OK)
        return status;

    uint32_t crc = mamba_crc32(file->data + CHECKED_FROM, file->size - CHECKED_FROM);
    if (crc != model->info.crc32)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "crc32: got %08X from its bytes, expected %08X (damaged file?)", crc,
                          model->info.crc32);

    struct walk place = {.base = (const float *)(const void *)(file->data + HEADER_BYTES)};
    walk_tensors(&place, model);
    if (place.bad_tensor[0])
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "tensor %s: float %llu: got a NaN or infinity, expected finite ones",
                          place.bad_tensor, (unsigned long long)place.bad_index);
    return MAMBA_OK;
}

/* ---- public ---------------------------------------------------------------------------- */

/* Checks what follows the header in model->file, which is called `path` in messages. */
static mamba_status check_model(struct mamba_model *model, const char *path, mamba_error *error)
{
    mamba_status status = check_tensors(model, path, error);
    if (status != MAMBA_OK)
        return status;
    const char *wanted = getenv("MAMBA_ISA");
    model->kernels = mamba_choose_kernels(wanted);
    if (!model->kernels)
        return mamba_fail(
            error, MAMBA_ERR_ARGUMENT, NULL,
            "MAMBA_ISA: got %.60s, expected one of scalar, neon, avx2, avx512 that this "
            "processor has",
            wanted);
    if (mamba_context_bytes(model) == 0)
        return mamba_fail(error, MAMBA_ERR_MEMORY, path,
                          "its activations do not fit this machine's address space");
    return MAMBA_OK;
}

/* Takes `file`, also on an error. */
static mamba_status new_model(mamba_model **out, struct file_bytes file, const char *path,
                              mamba_error *error)
{
    struct mamba_info info;
    struct mamba_model *model = NULL;
    mamba_status status = check_header(&info, &file, path, error);
    if (status == MAMBA_OK) {
        model = calloc(1, sizeof *model + info.members * sizeof *model->members);
        if (!model)
            status = mamba_fail(error, MAMBA_ERR_MEMORY, path, "no memory for the model's table");
    }
    if (!model) {
        mamba_file_close(&file);
        return status;
    }
    model->file = file;
    model->info = info;
    for (int i = 0; i < 256; i++)
        model->pixel_values[i] = ((float)i / 255.0f - info.pixel_mean) / info.pixel_std;
    status = check_model(model, path, error);
    if (status == MAMBA_OK && !mamba_fold(model))
        status = mamba_fail(error, MAMBA_ERR_MEMORY, path, "no memory for the first product");
    if (status == MAMBA_OK)
        *out = model;
    else
        mamba_model_close(model);
    return status;
}

static mamba_status open_file(mamba_model **out, const char *path, enum file_access access,
                              mamba_error *error)
{
    if (out)
        *out = NULL;
    if (!out || !path)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "opening a model: %s is NULL",
                          out ? "path" : "out");
    struct file_bytes file;
    mamba_status status = mamba_file_open(&file, path, access, error);
    if (status == MAMBA_OK)
        return new_model(out, file, path, error);
    mamba_file_close(&file);
    return status;
}

mamba_status mamba_model_open(mamba_model **out, const char *path, mamba_error *error)
{
    return open_file(out, path, FILE_MAPPED, error);
}

mamba_status mamba_model_read(mamba_model **out, const char *path, mamba_error *error)
{
    return open_file(out, path, FILE_COPIED, error);
}

mamba_status mamba_model_from_bytes(mamba_model **out, const void *bytes, size_t size,
                                    mamba_error *error)
{
    if (out)
        *out = NULL;
    if (!out || (!bytes && size > 0) || (uintptr_t)bytes % sizeof(float) != 0)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "opening a model: %s, expected bytes aligned for a float",
                          !out ? "out is NULL"
                               : (bytes ? "bytes are not aligned" : "bytes is NULL"));
    const struct file_bytes file = {.data = bytes, .size = size, .access = FILE_BORROWED};
    return new_model(out, file, NULL, error);
}

void mamba_model_close(mamba_model *model)
{
    if (!model)
        return;
    mamba_file_close(&model->file);
    free(model->folds);
    free(model);
}

const mamba_info *mamba_model_info(const mamba_model *model)
{
    return &model->info;
}

const char *mamba_model_isa(const mamba_model *model)
{
    return model->kernels->name;
}
