/* Compares every stage with what PyTorch computed (tests/tools/golden.py wrote it), so that the
 * first failure names the stage that is wrong.
 *
 * A .golden file, little-endian: "MNGOLD1\n", u32 number of records, then for each record u32
 * length of the name, the name, i32 layer, u32 rows, u32 cols and rows * cols float32. The first
 * record is "input", the image; the others are the trace of mamba.h, in its order. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64 /* else a 32-bit machine may not list a folder */

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "file_bytes.h"
#include "mamba.h"

static const double TOLERANCE = 2e-6; /* L2 norm of a difference, relative to its tensor */
static const double FLOOR = 1e-7;     /* root mean square that is always allowed */

struct record {
    char name[32];
    int32_t layer;
    uint32_t rows, cols;
    const uint8_t *values; /* [rows, cols] float32, unaligned */
};

/* A golden file and how far the trace has come in it. */
struct replay {
    const char *name;
    const uint8_t *at, *end;
    uint32_t left; /* records to be read */
    double worst;  /* largest relative difference so far */
    char worst_name[32];
};

static bool take(struct replay *replay, void *out, size_t bytes)
{
    if ((size_t)(replay->end - replay->at) < bytes)
        return false;
    memcpy(out, replay->at, bytes);
    replay->at += bytes;
    return true;
}

static bool next_record(struct replay *replay, struct record *record)
{
    uint32_t length;
    if (replay->left == 0 || !take(replay, &length, 4) || length >= sizeof record->name)
        return false;
    memset(record->name, 0, sizeof record->name);
    if (!take(replay, record->name, length) || !take(replay, &record->layer, 4) ||
        !take(replay, &record->rows, 4) || !take(replay, &record->cols, 4))
        return false;
    const uint64_t bytes = (uint64_t)record->rows * record->cols * sizeof(float);
    if (record->rows == 0 || record->cols == 0 || bytes / 4 > UINT32_MAX ||
        (uint64_t)(replay->end - replay->at) < bytes)
        return false;
    record->values = replay->at;
    replay->at += bytes;
    replay->left--;
    return true;
}

static float value_at(const struct record *record, size_t index)
{
    float value;
    memcpy(&value, record->values + index * sizeof value, sizeof value);
    return value;
}

static char manual[20000]; /* the text of mamba.h */

static void read_manual(void)
{
    FILE *file = fopen("csrc/include/mamba.h", "rb");
    CHECK(file && fread(manual, 1, sizeof manual - 1, file) > 0 && feof(file), "no mamba.h");
    if (file)
        fclose(file);
}

/* Checks that mamba.h lists the name of a stage. */
static void find_in_manual(const char *name)
{
    char quoted[40];
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    CHECK(strstr(manual, quoted), "mamba.h does not name the stage %s", quoted);
}

static void compare(void *user, const char *name, int layer, const float *data, size_t rows,
                    size_t cols, size_t row_stride)
{
    struct replay *replay = user;
    struct record record;
    find_in_manual(name);
    if (!CHECK(next_record(replay, &record), "%s: no record for %s, layer %d", replay->name, name,
               layer))
        return;
    if (!CHECK(strcmp(record.name, name) == 0 && record.layer == layer && record.rows == rows &&
                   record.cols == cols,
               "%s: got %s, layer %d, %zu x %zu; the file has %s, layer %d, %u x %u", replay->name,
               name, layer, rows, cols, record.name, record.layer, record.rows, record.cols))
        return;
    double difference = 0.0, size = 0.0;
    for (size_t row = 0; row < rows; row++) {
        for (size_t col = 0; col < cols; col++) {
            double expected = (double)value_at(&record, row * cols + col);
            double error = (double)data[row * row_stride + col] - expected;
            difference += error * error;
            size += expected * expected;
        }
    }
    const double relative = sqrt(difference / size), rms = sqrt(difference / (double)(rows * cols));
    CHECK(relative <= TOLERANCE || rms <= FLOOR, "%s: %s, layer %d: relative difference %g",
          replay->name, name, layer, relative);
    if (relative > replay->worst) {
        replay->worst = relative;
        snprintf(replay->worst_name, sizeof replay->worst_name, "%s", name);
    }
}

static void run_model(struct replay *replay, const mamba_model *model)
{
    const mamba_info *info = mamba_model_info(model);
    struct record input;
    if (!CHECK(next_record(replay, &input) && strcmp(input.name, "input") == 0 &&
                   input.rows == info->height && input.cols == info->width * info->channels,
               "%s: the first record is not the model's input", replay->name))
        return;
    const size_t n = (size_t)input.rows * input.cols, bytes = mamba_context_bytes(model);
    float *pixels = malloc(n * sizeof *pixels), *logits = malloc(info->n_classes * sizeof *logits);
    void *arena = malloc(bytes);
    mamba_context *context;
    if (!pixels || !logits || !arena)
        abort();
    memcpy(pixels, input.values, n * sizeof *pixels);
    CHECK(mamba_context_init(&context, model, arena, bytes, NULL) == MAMBA_OK, "init");
    mamba_set_trace(context, compare, replay);
    mamba_forward(context, pixels, logits);
    CHECK(replay->left == 0 && replay->at == replay->end, "%s: %u records left over", replay->name,
          replay->left);
    printf("%-28s worst relative difference %.2g (%s)\n", replay->name, replay->worst,
           replay->worst_name);
    free(arena);
    free(logits);
    free(pixels);
}

static void replay_pair(const char *folder, const char *name)
{
    char path[1000];
    struct file_bytes golden;
    mamba_error error = {MAMBA_OK, ""};
    mamba_model *model;
    snprintf(path, sizeof path, "%s/%s.bin", folder, name);
    if (!CHECK(mamba_model_open(&model, path, &error) == MAMBA_OK, "%s", error.message))
        return;
    snprintf(path, sizeof path, "%s/%s.golden", folder, name);
    if (CHECK(mamba_file_open(&golden, path, FILE_MAPPED, &error) == MAMBA_OK, "%s",
              error.message)) {
        struct replay replay = {.name = name, .at = golden.data, .end = golden.data + golden.size};
        char magic[8] = "";
        if (CHECK(take(&replay, magic, 8) && memcmp(magic, "MNGOLD1\n", 8) == 0 &&
                      take(&replay, &replay.left, 4),
                  "%s: not a golden file", name))
            run_model(&replay, model);
        mamba_file_close(&golden);
    }
    mamba_model_close(model);
}

/* Copies the name without `suffix` to `out` [size]; returns false if it does not end so. */
static bool stem_of(char *out, size_t size, const char *name, const char *suffix)
{
    const size_t length = strlen(name), tail = strlen(suffix);
    if (length <= tail || length - tail >= size || strcmp(name + length - tail, suffix) != 0)
        return false;
    memcpy(out, name, length - tail);
    out[length - tail] = '\0';
    return true;
}

int main(int argc, char **argv)
{
    const char *folder = argc > 1 ? argv[1] : "csrc/tests/golden";
    DIR *directory = opendir(folder);
    int pairs = 0, models = 0;
    read_manual();
    char name[200];
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        if (stem_of(name, sizeof name, entry->d_name, ".golden")) {
            replay_pair(folder, name);
            pairs++;
        }
        models += stem_of(name, sizeof name, entry->d_name, ".bin");
    }
    if (directory)
        closedir(directory);
    CHECK(pairs > 0 && pairs == models, "%s: %d .golden files for %d models", folder, pairs,
          models);
    return check_summary();
}
