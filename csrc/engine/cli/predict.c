#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "error.h"
#include "idx.h"

enum { MAX_CLASSES = 256 }; /* the limit of a model file */

static void print_array(const char *name, const float *values, size_t n)
{
    printf(",\"%s\":[", name);
    for (size_t i = 0; i < n; i++)
        printf("%s%.9g", i ? "," : "", (double)values[i]);
    printf("]");
}

static void print_json(size_t class, const float *probabilities, const float *logits, size_t n)
{
    printf("{\"prediction\":%zu", class);
    print_array("probabilities", probabilities, n);
    print_array("logits", logits, n);
    printf("}\n");
}

static void print_table(size_t class, const float *probabilities, size_t n)
{
    enum { BAR = 40 };
    printf("class %zu\n", class);
    for (size_t i = 0; i < n; i++) {
        printf("%5zu  %8.4f %%  ", i, 100.0 * (double)probabilities[i]);
        for (int step = 0; step < (int)(probabilities[i] * (float)BAR + 0.5f); step++)
            putchar('#');
        putchar('\n');
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
        print_json(class, probabilities, logits, n);
    else
        print_table(class, probabilities, n);
    return MAMBA_OK;
}

mamba_status command_predict(const struct job *job, mamba_error *error)
{
    const mamba_info *info = mamba_model_info(job->model);
    const char *path = job->options->positional[1];
    struct file_bytes image;
    mamba_status status = mamba_file_open(&image, path, job->options->access, error);
    if (status == MAMBA_OK)
        status = mamba_raw_image_check(&image, path, info->height, info->width, error);
    if (status == MAMBA_OK)
        status = predict(job, (const float *)(const void *)image.data, error);
    mamba_file_close(&image);
    return status;
}
