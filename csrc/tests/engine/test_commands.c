/* The figures that the commands print, and which of several items an error names. */
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "cli/commands.h"
#include "tiny_model.h"

enum { PIXELS = 4 * 6, CLASSES = 3, IMAGES = 4 };

/* ---- running a command --------------------------------------------------------------------- */

/* Replaces the C library's: each reading is half a second later than the one before. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    static time_t readings;
    (void)clock;
    now->tv_sec = readings / 2;
    now->tv_nsec = readings % 2 ? 500000000L : 0;
    readings++;
    return 0;
}

static char folder[] = "/tmp/mamba_commands_XXXXXX";
static char model_path[80], input_path[80], images_path[80], labels_path[80];
static char printed[4096], noted[4096]; /* on stdout and stderr, by the last command */

/* Redirects a stream to a new temporary file; returns a descriptor of where it went before. */
static int redirect(FILE *stream, FILE **file)
{
    *file = tmpfile();
    fflush(stream);
    const int kept = dup(fileno(stream));
    if (!*file || kept < 0 || dup2(fileno(*file), fileno(stream)) < 0)
        abort();
    return kept;
}

/* Ends the redirection, and reads what the stream got meanwhile. */
static void restore(FILE *stream, int kept, FILE *file, char text[4096])
{
    fflush(stream);
    dup2(kept, fileno(stream));
    close(kept);
    rewind(file);
    text[fread(text, 1, 4095, file)] = '\0';
    fclose(file);
}

/* Runs a command, whose output goes to `printed` and `noted`. */
static mamba_status run(command_function command, const struct options *options, mamba_error *error)
{
    FILE *out, *err;
    const int kept_out = redirect(stdout, &out), kept_err = redirect(stderr, &err);
    const mamba_status status = run_command(command, options, error);
    restore(stderr, kept_err, err, noted);
    restore(stdout, kept_out, out, printed);
    return status;
}

/* Returns the number after `label` on a line or in JSON, NAN if there is none. */
static double figure(const char *label)
{
    const char *found = strstr(printed, label);
    return found ? strtod(found + strlen(label), NULL) : (double)NAN;
}

static void expect_figure(const char *label, double wanted)
{
    CHECK(fabs(figure(label) - wanted) <= 1e-6 * fabs(wanted), "%s %.9g, got %.9g in: %s", label,
          wanted, figure(label), printed);
}

/* Writes a model whose logits are `bias` for every image: its head's weights are zeros. */
static void write_constant_model(const float bias[CLASSES])
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 3);
    const size_t head = (size_t)(16 * 5 + 16) * sizeof(float); /* P(3, 5) and V(3), padded */
    memset(tiny.bytes + tiny.size - head, 0, head);
    memcpy(tiny.bytes + tiny.size - 16 * sizeof(float), bias, CLASSES * sizeof *bias);
    tiny_seal(&tiny);
    tiny_write(model_path, tiny.bytes, tiny.size);
    tiny_free(&tiny);
}

/* Writes IMAGES black images and their labels. */
static void write_set(const uint8_t labels[IMAGES])
{
    uint8_t images[16 + IMAGES * PIXELS] = {0, 0, 8, 3, 0, 0, 0, IMAGES, 0, 0, 0, 4, 0, 0, 0, 6};
    uint8_t label_file[8 + IMAGES] = {0, 0, 8, 1, 0, 0, 0, IMAGES};
    memcpy(label_file + 8, labels, IMAGES);
    tiny_write(images_path, images, sizeof images);
    tiny_write(labels_path, label_file, sizeof label_file);
}

static bool input_changes; /* between a command's check and its output */

/* Replaces the C library's, which only the softmax calls. */
float expf(float x)
{
    float pixels[PIXELS];
    for (int i = 0; i < PIXELS; i++)
        pixels[i] = i % 2 ? 1e30f : NAN;
    FILE *file = input_changes ? fopen(input_path, "r+b") : NULL;
    if (file) {
        fwrite(pixels, 1, sizeof pixels, file);
        fclose(file);
    }
    return (float)exp((double)x);
}

static const struct options PREDICT = {.positional = {model_path, input_path}};
static const struct options EVAL = {.positional = {model_path, images_path, labels_path}};

/* Logits ln 1, ln 2 and ln 5 are probabilities of 1/8, 2/8 and 5/8. */
static void test_prediction(void)
{
    const float black[PIXELS] = {0}, bias[CLASSES] = {0.0f, 0.693147182f, 1.60943794f};
    struct options options = PREDICT;
    write_constant_model(bias);
    tiny_write(input_path, black, sizeof black);
    CHECK(run(command_predict, &options, NULL) == MAMBA_OK, "a table");
    CHECK(strcmp(printed, "class 2\n"
                          "    0   12.5000 %  #####\n"
                          "    1   25.0000 %  ##########\n"
                          "    2   62.5000 %  #########################\n") == 0,
          "got %s", printed);
    options.json = true;
    CHECK(run(command_predict, &options, NULL) == MAMBA_OK, "JSON");
    expect_figure("\"prediction\":", 2);
    expect_figure("\"probabilities\":[", 0.125);
    expect_figure("\"logits\":[0,", (double)bias[1]);
}

/* --show prints any values of a mapped file that changes after its check. */
static void test_changing_input(void)
{
    const float black[PIXELS] = {0}, bias[CLASSES] = {0};
    struct options options = PREDICT;
    options.show = true;
    write_constant_model(bias);
    tiny_write(input_path, black, sizeof black);
    input_changes = true;
    CHECK(run(command_predict, &options, NULL) == MAMBA_OK, "refused");
    input_changes = false;
    CHECK(strstr(printed, "class 0\n"), "got %s", printed);
}

/* The first of equal logits is the prediction. */
static void test_ties(void)
{
    const float black[PIXELS] = {0}, bias[CLASSES] = {-1.0f, 2.0f, 2.0f};
    const uint8_t labels[IMAGES] = {1, 2, 1, 0};
    struct options predict = PREDICT, eval = EVAL;
    predict.json = eval.json = true;
    write_constant_model(bias);
    write_set(labels);
    tiny_write(input_path, black, sizeof black);
    CHECK(run(command_predict, &predict, NULL) == MAMBA_OK, "predict");
    expect_figure("\"prediction\":", 1);
    CHECK(run(command_eval, &eval, NULL) == MAMBA_OK, "eval");
    CHECK(strcmp(printed, "{\"n\":4,\"correct\":2,\"accuracy\":0.5,"
                          "\"members_asked_mean\":1,\"members_asked\":[4]}\n") == 0,
          "got %s", printed);
    eval.json = false;
    CHECK(run(command_eval, &eval, NULL) == MAMBA_OK, "eval");
    CHECK(strcmp(printed, "accuracy 0.5000 (2 of 4)\n") == 0, "got %s", printed);
}

/* No more threads than images; 0 is the command's own choice; one if there are no others. */
static void test_threads(void)
{
    const float bias[CLASSES] = {0};
    const uint8_t labels[IMAGES] = {0};
    const bool several = mamba_max_threads() > 1;
    struct options options = EVAL;
    write_constant_model(bias);
    write_set(labels);
    for (int threads = 1; threads <= 8; threads++) {
        char wanted[80];
        const int used = several ? (threads < IMAGES ? threads : IMAGES) : 1;
        snprintf(wanted, sizeof wanted,
                 "4 images in 0.500 s: 125000.0 us per image on %d thread%s\n", used,
                 used == 1 ? "" : "s");
        options.threads = threads;
        CHECK(run(command_eval, &options, NULL) == MAMBA_OK, "eval");
        CHECK(strstr(noted, wanted), "expected %s, got %s", wanted, noted);
        CHECK(!strstr(noted, "warning") == (several || threads == 1), "got %s", noted);
    }
    CHECK(choose_threads(0, 7) == 7 && choose_threads(1, 7) == 1, "the number of threads");
}

static void test_options(void)
{
    static const struct syntax bench = {"bench", "MODEL [IMAGES] [options]", 1, 2,
                                        ALLOW_BATCH | ALLOW_THREADS | ALLOW_ROUNDS};
    static const struct {
        char *words[3];
        const char *refusal; /* NULL if it is accepted */
    } cases[] = {
        {{"m", "--batch", "65536"}, NULL},
        {{"m", "--batch", "65537"}, "--batch: got '65537', expected 1..65536"},
        {{"m", "--batch", "1x"}, "--batch: got '1x', expected 1..65536"},
        {{"m", "--rounds", "1000"}, NULL},
        {{"m", "--rounds", "1001"}, "--rounds: got '1001', expected 1..1000"},
        {{"m", "--threads", "1024"}, NULL},
        {{"m", "--threads", "1025"}, "--threads: got '1025', expected 1..1024"},
        {{"m", "--threads", "0"}, "--threads: got '0', expected 1..1024"},
        {{"m", "--threads", "99999999999999999999"}, "--threads: got '99999999999999999999',"},
        {{"m", "--logits", "f"}, "--logits: not an option here"},
        {{"m", "n", "--json"}, NULL},
        {{"m", "n", "o"}, "files: got 3, expected 2"},
        {{"--json", "--json", "--json"}, "files: got 0, expected 1"},
        {{"m", "--exit-margin", "1"}, "--exit-margin: not an option here"},
        {{"-", "--batch", "1"}, "-: stdin can be one file, and not MODEL"},
        {{"m", "--rounds", "-"}, "--rounds: got '-', expected 1..1000"},
        {{"m", "--json", "--batch"}, "--batch: expected a value after it"},
        {{"m", "--json", "-b"}, "unknown option '-b'"},
    };
    struct options options;
    mamba_error error = {MAMBA_OK, ""};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const mamba_status status = parse_options(&options, 3, cases[i].words, &bench, &error);
        if (cases[i].refusal)
            CHECK(status == MAMBA_ERR_ARGUMENT && strstr(error.message, cases[i].refusal),
                  "expected %s, got %s", cases[i].refusal, error.message);
        else
            CHECK(status == MAMBA_OK, "%s %s: %s", cases[i].words[1], cases[i].words[2],
                  error.message);
    }
    static const struct syntax eval = {"eval", "", 3, 3, ALLOW_LOGITS};
    static const struct {
        char *words[3];
        mamba_status status;
    } streams[] = {{{"m", "-", "l"}, MAMBA_OK},
                   {{"m", "i", "-"}, MAMBA_OK},
                   {{"m", "-", "-"}, MAMBA_ERR_ARGUMENT},
                   {{"-", "i", "l"}, MAMBA_ERR_ARGUMENT}};
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++)
        CHECK(parse_options(&options, 3, streams[i].words, &eval, &error) == streams[i].status,
              "case %zu", i);
    CHECK(parse_options(&options, 1, cases[0].words, &bench, &error) == MAMBA_OK, "no option");
    CHECK(options.batch == 1 && options.rounds == 5 && options.threads == 0 && !options.json &&
              options.access == FILE_MAPPED && !options.logits,
          "defaults");
}

/* Each number has a value of its own, so that no two can be swapped. */
static void test_info(void)
{
    mamba_info dims = tiny_dims();
    dims.norm_eps = 0.015625f;
    dims.exit_margin = 4.75f;
    dims.pixel_mean = 0.25f;
    dims.pixel_std = 0.5f;
    dims.pos_embed = 1;
    struct tiny_model tiny = tiny_build(dims, 4);
    tiny_write(model_path, tiny.bytes, tiny.size);
    struct options options = {.positional = {model_path}};
    const struct {
        const char *name;
        double wanted;
    } numbers[] = {{"height", 4},         {"width", 6},
                   {"channels", 1},       {"n_classes", 3},
                   {"patch_height", 2},   {"patch_width", 3},
                   {"stem_width", 0},     {"d_model", 5},
                   {"n_layers", 2},       {"d_state", 4},
                   {"d_conv", 3},         {"d_inner", 7},
                   {"dt_rank", 2},        {"members", 1},
                   {"length", 4},         {"norm_eps", 0.015625},
                   {"exit_margin", 4.75}, {"pixel_mean", 0.25},
                   {"pixel_std", 0.5},    {"file_bytes", (double)tiny.size}};
    for (int json = 0; json < 2; json++) {
        options.json = json;
        CHECK(run(command_info, &options, NULL) == MAMBA_OK, "info");
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            char label[40];
            snprintf(label, sizeof label, json ? "\"%s\":" : "\n%-13s ", numbers[i].name);
            expect_figure(label, numbers[i].wanted);
        }
    }
    CHECK(strstr(printed, "\"tied_a\":false,\"pos_embed\":true,\"local_conv\":false"), "got %s",
          printed);
    tiny_free(&tiny);
}

/* The first of several bad labels is named, and so is the file that it is in. */
static void test_bad_labels(void)
{
    const float bias[CLASSES] = {0};
    const uint8_t labels[IMAGES] = {0, 2, CLASSES, 7};
    struct options options = EVAL;
    mamba_error error = {MAMBA_OK, ""};
    write_constant_model(bias);
    write_set(labels);
    CHECK(run(command_eval, &options, &error) == MAMBA_ERR_INPUT, "%s", error.message);
    CHECK(strstr(error.message, "labels.idx: label 2: got 3, expected 0..2"), "%s", error.message);
}

/* A batch's error names the first image whose logits are not finite, also on several threads. */
static void test_bad_images(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 5);
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    float pixels[IMAGES * PIXELS] = {0}, logits[IMAGES * CLASSES];
    pixels[1 * PIXELS] = pixels[3 * PIXELS] = NAN;
    if (!CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open"))
        return;
    for (int threads = 1; threads <= 3; threads++) {
        const size_t bytes = mamba_batch_bytes(model, threads);
        void *arena = malloc(bytes);
        const mamba_status status =
            mamba_forward_batch(model, arena, bytes, threads, pixels, IMAGES, logits, NULL, &error);
        CHECK(status == MAMBA_ERR_MODEL && strstr(error.message, "image 1:"), "%s", error.message);
        CHECK(isfinite(logits[0]) && isfinite(logits[2 * CLASSES]), "good images have no answer");
        free(arena);
    }
    const int bad[] = {-1, 0, 1025};
    char arena[1];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const mamba_status status =
            mamba_forward_batch(model, arena, 1, bad[i], pixels, IMAGES, logits, NULL, &error);
        CHECK(status == MAMBA_ERR_ARGUMENT && strstr(error.message, "threads: got"), "%d: %s",
              bad[i], error.message);
    }
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* The first of several tensors that are not finite is named, with its layer and its scan. */
static void test_bad_tensors(void)
{
    /* Floats before the second layer's second scan, and within it before x_proj_b. */
    enum { STEM = 16 * 6 + 16, IN_PROJ = 2 * 16 * 5, CONV = 3 * 16 + 16, SCAN = 19 * 16 };
    enum { LAYER = IN_PROJ + 2 * SCAN + 16 * 7, SECOND = STEM + LAYER + IN_PROJ + SCAN };
    const struct {
        int place;
        const char *name;
    } cases[] = {{SECOND + CONV + 20, "tensor layers.1.x_proj_b: float 20:"},
                 {SECOND + CONV + 5, "tensor layers.1.x_proj_b: float 5:"},
                 {SECOND, "tensor layers.1.conv1d_b.weight: float 0:"},
                 {SECOND - SCAN + CONV, "tensor layers.1.x_proj: float 0:"},
                 {STEM - 1, "tensor stem.bias: float 15:"}};
    mamba_info dims = tiny_dims();
    dims.direction = 2;
    struct tiny_model tiny = tiny_build(dims, 6);
    mamba_error error = {MAMBA_OK, ""};
    mamba_model *model;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) { /* each before those so far */
        tiny_put_f32(&tiny, tiny.tensors + 4 * (size_t)cases[i].place, NAN);
        tiny_seal(&tiny);
        CHECK(tiny_open(&model, &tiny, &error) == MAMBA_ERR_MODEL &&
                  strstr(error.message, cases[i].name),
              "expected %s, got %s", cases[i].name, error.message);
    }
    tiny_write(model_path, tiny.bytes, tiny.tensors); /* a whole header, and no tensors */
    CHECK(mamba_model_open(&model, model_path, &error) == MAMBA_ERR_MODEL &&
              strstr(error.message, "got 256 bytes, expected the"),
          "%s", error.message);
    tiny_free(&tiny);
}

/* No file stays open if its head, which is copied first, is refused. */
static void test_refused_copies_are_closed(void)
{
    const float bias[CLASSES] = {0};
    const uint8_t zeros[1000] = {0}, labels[IMAGES] = {0};
    const char *const bad = input_path;
    const struct {
        command_function run;
        const char *files[3];
        mamba_status wanted;
    } cases[] = {
        {command_info, {bad}, MAMBA_ERR_MODEL},
        {command_predict, {model_path, bad}, MAMBA_ERR_INPUT},
        {command_eval, {model_path, bad, labels_path}, MAMBA_ERR_INPUT},
        {command_eval, {model_path, images_path, bad}, MAMBA_ERR_INPUT},
    };
    write_constant_model(bias);
    write_set(labels);
    tiny_write(bad, zeros, sizeof zeros);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct options options = {.access = FILE_COPIED};
        memcpy(options.positional, cases[i].files, sizeof cases[i].files);
        const int before = tiny_open_descriptors();
        const mamba_status status = run(cases[i].run, &options, NULL);
        CHECK(status == cases[i].wanted, "case %zu: status %d", i, (int)status);
        CHECK(tiny_open_descriptors() == before, "case %zu: a file stayed open", i);
    }
}

/* A missing argument is named, each alone; without images none is needed. */
static void test_missing_arguments(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 7);
    mamba_model *model;
    mamba_context *context;
    mamba_error error = {MAMBA_OK, ""};
    if (!CHECK(tiny_open(&model, &tiny, NULL) == MAMBA_OK, "does not open"))
        return;
    const size_t bytes = mamba_batch_bytes(model, 1);
    float floats[PIXELS] = {0}, logits[CLASSES];
    void *arena = malloc(bytes);
    const char *const names[] = {"model is NULL", "arena is NULL", "images is NULL",
                                 "logits is NULL"};
    for (int missing = 0; missing < 4; missing++) {
        const mamba_status status = mamba_forward_batch(
            missing == 0 ? NULL : model, missing == 1 ? NULL : arena, bytes, 1,
            missing == 2 ? NULL : floats, 1, missing == 3 ? NULL : logits, NULL, &error);
        CHECK(status == MAMBA_ERR_ARGUMENT && strstr(error.message, names[missing]),
              "expected %s, got %s", names[missing], error.message);
    }
    CHECK(mamba_forward_batch(model, arena, bytes, 1, NULL, 0, NULL, NULL, &error) == MAMBA_OK,
          "%s", error.message);
    mamba_context_init(NULL, model, arena, bytes, &error);
    CHECK(strstr(error.message, "out is NULL"), "%s", error.message);
    mamba_context_init(&context, NULL, arena, bytes, &error);
    CHECK(strstr(error.message, "model is NULL"), "%s", error.message);
    mamba_context_init(&context, model, NULL, bytes, &error);
    CHECK(strstr(error.message, "arena is NULL"), "%s", error.message);
    mamba_model *other;
    mamba_model_open(NULL, model_path, &error);
    CHECK(strstr(error.message, "out is NULL"), "%s", error.message);
    mamba_model_open(&other, NULL, &error);
    CHECK(strstr(error.message, "path is NULL") && !other, "%s", error.message);
    mamba_model_from_bytes(&other, NULL, tiny.size, &error);
    CHECK(strstr(error.message, "bytes is NULL") && !other, "%s", error.message);
    mamba_model_from_bytes(&other, tiny.bytes + 2, tiny.size - 2, &error);
    CHECK(strstr(error.message, "not aligned") && !other, "%s", error.message);
    free(arena);
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* One logit that overflows is enough, whichever class it is of. */
static void test_one_bad_logit(void)
{
    const float black[PIXELS] = {0};
    struct options options = PREDICT;
    mamba_error error = {MAMBA_OK, ""};
    tiny_write(input_path, black, sizeof black);
    for (size_t class = 0; class < CLASSES; class++) {
        struct tiny_model tiny = tiny_build(tiny_dims(), 3);
        const size_t head = tiny.size - (size_t)(16 * 5 + 16) * sizeof(float);
        memset(tiny.bytes + head, 0, tiny.size - head);
        for (size_t i = 0; i < 5; i++) /* each channel with the sign that makes the sum overflow */
            tiny_put_f32(&tiny, head + (i * 16 + class) * sizeof(float), i == 0 ? 3e38f : -3e38f);
        tiny_seal(&tiny);
        tiny_write(model_path, tiny.bytes, tiny.size);
        tiny_free(&tiny);
        CHECK(run(command_predict, &options, &error) == MAMBA_ERR_MODEL &&
                  strstr(error.message, "NaN or infinity, expected numbers") &&
                  !strstr(error.message, "weights"), /* a caller's pixel may be the reason */
              "class %zu: %s", class, error.message);
    }
}

/* A long path is shown by its end, which tells files apart, and the message still has room. */
static void test_long_path(void)
{
    char path[400] = "/tmp/";
    memset(path + 5, 'x', 300);
    memcpy(path + 305, "/end.bin", sizeof "/end.bin");
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    CHECK(mamba_model_open(&model, path, &error) == MAMBA_ERR_IO, "%s", error.message);
    CHECK(strncmp(error.message, "...", 3) == 0 &&
              strstr(error.message, "xxx/end.bin: cannot open"),
          "%s", error.message);
}

/* Returns whether a file is mapped; false where Linux's list of mappings is missing. */
static bool is_mapped(const char *path)
{
    char line[512];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        found = found || strstr(line, path);
    if (maps)
        fclose(maps);
    return found;
}

static void test_closed_models_are_unmapped(void)
{
    const float bias[CLASSES] = {0};
    mamba_model *model;
    write_constant_model(bias);
    CHECK(mamba_model_open(&model, model_path, NULL) == MAMBA_OK, "does not open");
    mamba_model_close(model);
    CHECK(!is_mapped(model_path), "%s is still mapped", model_path);
}

static void test_softmax_of_small_logits(void)
{
    float logits[] = {-1000.0f, -1000.0f, -2000.0f, -1000.0f};
    mamba_softmax(logits, logits, 4);
    for (int i = 0; i < 4; i++)
        CHECK(fabsf(logits[i] - (i == 2 ? 0.0f : 1.0f / 3.0f)) < 1e-6f, "%d: %g", i,
              (double)logits[i]);
}

int main(void)
{
    if (!mkdtemp(folder))
        abort();
    snprintf(model_path, sizeof model_path, "%s/model.bin", folder);
    snprintf(input_path, sizeof input_path, "%s/input.bin", folder);
    snprintf(images_path, sizeof images_path, "%s/images.idx", folder);
    snprintf(labels_path, sizeof labels_path, "%s/labels.idx", folder);
    test_prediction();
    test_changing_input();
    test_ties();
    test_threads();
    test_options();
    test_info();
    test_bad_labels();
    test_bad_images();
    test_bad_tensors();
    test_missing_arguments();
    test_one_bad_logit();
    test_refused_copies_are_closed();
    test_closed_models_are_unmapped();
    test_long_path();
    test_softmax_of_small_logits();
    const char *const files[] = {model_path, input_path, images_path, labels_path};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        unlink(files[i]);
    CHECK(rmdir(folder) == 0, "a file was left behind in %s", folder);
    return check_summary();
}
