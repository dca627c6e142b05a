#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "error.h"
#include "idx.h"

static mamba_status check_set(const mamba_info *info, const struct idx_images *images,
                              const struct idx_labels *labels, const struct options *options,
                              mamba_error *error)
{
    if (images->height != info->height || images->width != info->width)
        return mamba_fail(error, MAMBA_ERR_INPUT, options->positional[1],
                          "image size: got %zu x %zu, expected the model's %u x %u", images->height,
                          images->width, info->height, info->width);
    if (images->n != labels->n)
        return mamba_fail(error, MAMBA_ERR_INPUT, options->positional[2],
                          "labels: got %zu, expected one for each of %zu images", labels->n,
                          images->n);
    for (size_t i = 0; i < labels->n; i++) {
        if (labels->labels[i] >= info->n_classes)
            return mamba_fail(error, MAMBA_ERR_INPUT, options->positional[2],
                              "label %zu: got %u, expected 0..%u", i, labels->labels[i],
                              info->n_classes - 1);
    }
    return MAMBA_OK;
}

static size_t count_correct(const float *logits, size_t n_classes, const struct idx_labels *labels)
{
    size_t correct = 0;
    for (size_t i = 0; i < labels->n; i++)
        correct += argmax(logits + i * n_classes, n_classes) == labels->labels[i];
    return correct;
}

static void report(const struct options *options, size_t n, size_t correct)
{
    const double accuracy = (double)correct / (double)n;
    if (options->json)
        printf("{\"n\":%zu,\"correct\":%zu,\"accuracy\":%.9g}\n", n, correct, accuracy);
    else
        printf("accuracy %.4f (%zu of %zu)\n", accuracy, correct, n);
}

/* Classifies the images into logits [n, n_classes], in memory of the caller, and prints the result.
 */
static mamba_status score(const mamba_model *model, const struct idx_images *images,
                          const struct idx_labels *labels, const struct options *options,
                          int threads, void *arena, float *logits, mamba_error *error)
{
    const size_t n = images->n, n_classes = mamba_model_info(model)->n_classes;
    const double start = now_seconds();
    mamba_status status = mamba_forward_batch_u8(model, arena, mamba_batch_bytes(model, threads),
                                                 threads, images->pixels, n, logits, error);
    const double seconds = now_seconds() - start;
    if (status != MAMBA_OK)
        return status;
    if (options->logits) {
        status = write_file(options->logits, logits, n * n_classes * sizeof *logits, error);
        if (status != MAMBA_OK)
            return status;
    }
    report(options, n, count_correct(logits, n_classes, labels));
    fprintf(stderr, "%zu images in %.3f s: %.1f us per image on %d thread%s\n", n, seconds,
            1e6 * seconds / (double)n, threads, threads == 1 ? "" : "s");
    return MAMBA_OK;
}

static mamba_status evaluate(const mamba_model *model, const struct idx_images *images,
                             const struct idx_labels *labels, const struct options *options,
                             mamba_error *error)
{
    const mamba_info *info = mamba_model_info(model);
    mamba_status status = check_set(info, images, labels, options, error);
    if (status != MAMBA_OK)
        return status;
    int threads = choose_threads(options->threads, mamba_max_threads());
    if ((size_t)threads > images->n)
        threads = (int)images->n; /* each thread needs its own memory */
    const size_t arena_bytes = mamba_batch_bytes(model, threads);
    void *arena = arena_bytes ? malloc(arena_bytes) : NULL;
    float *logits =
        calloc(images->n, info->n_classes * sizeof *logits); /* checks the product for overflow */
    if (arena && logits)
        status = score(model, images, labels, options, threads, arena, logits, error);
    else
        status = mamba_fail(error, MAMBA_ERR_MEMORY, NULL,
                            "no memory for the logits of %zu images and %d threads of %zu bytes",
                            images->n, threads, mamba_context_bytes(model));
    free(logits);
    free(arena);
    return status;
}

mamba_status command_eval(const struct options *options, mamba_error *error)
{
    mamba_model *model;
    mamba_status status = open_model(&model, options, error);
    if (status != MAMBA_OK)
        return status;
    struct idx_images images;
    struct idx_labels labels = {0};
    status = mamba_idx_images_open(&images, options->positional[1], options->access, error);
    if (status == MAMBA_OK)
        status = mamba_idx_labels_open(&labels, options->positional[2], options->access, error);
    if (status == MAMBA_OK)
        status = evaluate(model, &images, &labels, options, error);
    mamba_file_close(&labels.file);
    mamba_file_close(&images.file);
    mamba_model_close(model);
    return status;
}
