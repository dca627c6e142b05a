#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "error.h"
#include "idx.h"

static mamba_status check_set(const struct job *job, const struct idx *images,
                              const struct idx *labels, mamba_error *error)
{
    const mamba_info *info = mamba_model_info(job->model);
    mamba_status status = mamba_idx_check_size(images, info, error);
    if (status != MAMBA_OK)
        return status;
    if (images->n != labels->n)
        return mamba_fail(error, MAMBA_ERR_INPUT, labels->input.path,
                          "labels: got %zu, expected one for each of %zu images", labels->n,
                          images->n);
    for (size_t i = 0; i < labels->n; i++) {
        if (labels->data[i] >= info->n_classes)
            return mamba_fail(error, MAMBA_ERR_INPUT, labels->input.path,
                              "label %zu: got %u, expected 0..%u", i, labels->data[i],
                              info->n_classes - 1);
    }
    return MAMBA_OK;
}

/* Prints the accuracy of logits [n, n_classes], and of how many members they are the mean. */
static void report(const struct job *job, const float *logits, const uint8_t *members,
                   const struct idx *labels)
{
    const size_t n = labels->n, n_classes = mamba_model_info(job->model)->n_classes;
    size_t correct = 0;
    for (size_t i = 0; i < n; i++)
        correct += argmax(logits + i * n_classes, n_classes) == labels->data[i];
    const double accuracy = (double)correct / (double)n;
    struct asked asked = {.n = 0};
    count_asked(&asked, members, n);
    if (job->options->json) {
        printf("{\"n\":%zu,\"correct\":%zu,\"accuracy\":%.9g", n, correct, accuracy);
        print_asked(&asked, job->model, true);
        printf("}\n");
    } else {
        printf("accuracy %.4f (%zu of %zu)\n", accuracy, correct, n);
        if (mamba_model_info(job->model)->members > 1)
            print_asked(&asked, job->model, false);
    }
}

static mamba_status evaluate(const struct job *job, const struct idx *images,
                             const struct idx *labels, mamba_error *error)
{
    mamba_status status = check_set(job, images, labels, error);
    if (status != MAMBA_OK)
        return status;
    const size_t n = images->n, n_classes = mamba_model_info(job->model)->n_classes;
    int threads = choose_threads(job->options->threads, mamba_max_threads());
    if ((size_t)threads > n)
        threads = (int)n; /* each thread needs its own memory */
    const size_t arena_bytes = mamba_batch_bytes(job->model, threads);
    void *arena = arena_bytes ? malloc(arena_bytes) : NULL;
    float *logits = calloc(n, n_classes * sizeof *logits); /* checks the product for overflow */
    uint8_t *asked = malloc(n);
    const double start = now_seconds();
    if (arena && logits && asked)
        status = mamba_forward_batch_u8(job->model, arena, arena_bytes, threads, images->data, n,
                                        logits, asked, error);
    else
        status = mamba_fail(error, MAMBA_ERR_MEMORY, NULL,
                            "no memory for the logits of %zu images and %d threads", n, threads);
    const double seconds = now_seconds() - start;
    if (status == MAMBA_OK && job->options->logits)
        status =
            write_file(job->options->logits, NULL, logits, n * n_classes * sizeof *logits, error);
    if (status == MAMBA_OK && job->options->asked)
        status = write_file(job->options->asked, job->options->logits, asked, n, error);
    if (status == MAMBA_OK) {
        report(job, logits, asked, labels);
        fprintf(stderr, "%zu images in %.3f s: %.1f us per image on %d thread%s\n", n, seconds,
                1e6 * seconds / (double)n, threads, threads == 1 ? "" : "s");
    }
    free(asked);
    free(logits);
    free(arena);
    return status;
}

mamba_status command_eval(const struct job *job, mamba_error *error)
{
    const struct options *options = job->options;
    struct idx images, labels = {0};
    mamba_status status =
        mamba_idx_open(&images, options->positional[1], IDX_IMAGES, options->access, error);
    if (status == MAMBA_OK)
        status =
            mamba_idx_open(&labels, options->positional[2], IDX_LABELS, options->access, error);
    if (status == MAMBA_OK)
        status = evaluate(job, &images, &labels, error);
    mamba_input_close(&labels.input);
    mamba_input_close(&images.input);
    return status;
}
