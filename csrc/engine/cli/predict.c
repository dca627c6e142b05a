#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "error.h"
#include "idx.h"

enum { MAX_CLASSES = 256 }; /* the limit of a model file */

static void print_array(const char *name, const float *values, size_t n, const char *end)
{
    printf(",\"%s\":[", name);
    for (size_t i = 0; i < n; i++)
        printf("%.9g%s", (double)values[i], i + 1 < n ? "," : end);
}

static void print_json(const mamba_model *model, size_t class, const float *probabilities,
                       const float *logits, size_t n)
{
    printf("{\"prediction\":%zu,\"class\":", class);
    print_json_text(mamba_class_name(model, (uint32_t)class));
    print_array("probabilities", probabilities, n, "]");
    print_array("logits", logits, n, "]}\n");
}

/* Number of characters of UTF-8. */
static int characters(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((uint8_t)*text & 0xC0) != 0x80;
    return n;
}

static void print_table(const mamba_model *model, size_t class, const float *probabilities,
                        size_t n)
{
    static const char bar[] = "########################################";
    int width = 5;
    for (uint32_t i = 0; i < n; i++) {
        const int name = characters(mamba_class_name(model, i));
        width = name > width ? name : width;
    }
    printf("class %s\n", mamba_class_name(model, (uint32_t)class));
    for (uint32_t i = 0; i < n; i++) {
        const char *name = mamba_class_name(model, i);
        const float length = probabilities[i] * (float)(sizeof bar - 1) + 0.5f;
        printf("%*s%s  %8.4f %%  %.*s\n", width - characters(name), "", name,
               100.0 * (double)probabilities[i], (int)length, bar);
    }
}

static mamba_status predict(const struct job *job, const float *pixels, mamba_error *error)
{
    const size_t n = mamba_model_info(job->model)->n_classes;
    const size_t bytes = mamba_batch_bytes(job->model, 1);
    float logits[MAX_CLASSES], probabilities[MAX_CLASSES];
    void *arena = malloc(bytes);
    if (!arena)
        return mamba_fail(error, MAMBA_ERR_MEMORY, NULL, "no memory for %zu bytes", bytes);
    mamba_status status =
        mamba_forward_batch(job->model, arena, bytes, 1, pixels, 1, logits, error);
    free(arena);
    if (status != MAMBA_OK)
        return status;
    const size_t class = argmax(logits, n);
    mamba_softmax(logits, probabilities, n);
    if (job->options->json)
        print_json(job->model, class, probabilities, logits, n);
    else
        print_table(job->model, class, probabilities, n);
    return MAMBA_OK;
}

mamba_status command_predict(const struct job *job, mamba_error *error)
{
    const mamba_info *info = mamba_model_info(job->model);
    const struct options *options = job->options;
    struct input image;
    mamba_status status = mamba_input_open(&image, options->positional[1], options->access, error);
    if (status == MAMBA_OK)
        status = mamba_raw_image_check(&image, (size_t)info->height * info->width * info->channels,
                                       error);
    if (status == MAMBA_OK)
        status = predict(job, (const float *)(const void *)image.file.data, error);
    mamba_input_close(&image);
    return status;
}
