#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "error.h"
#include "idx.h"
#include "netpbm.h"
#include "picture.h"

enum { MAX_CLASSES = 256 }; /* the limit of a model file */

static void print_array(const char *name, const float *values, size_t n, const char *end)
{
    printf(",\"%s\":[", name);
    for (size_t i = 0; i < n; i++)
        printf("%.9g%s", (double)values[i], i + 1 < n ? "," : end);
}

/* The model's input: floats in 0..1, or the bytes of a prepared picture. */
struct image {
    const float *floats;
    const uint8_t *bytes;
    const mamba_picture *picture; /* NULL for floats */
};

static double pixel_at(const struct image *image, size_t i)
{
    return image->picture ? image->bytes[i] : 255 * (double)image->floats[i];
}

/* The model's answer about an image. */
struct answer {
    float logits[MAX_CLASSES], probabilities[MAX_CLASSES];
    size_t class;
    uint8_t asked; /* members */
};

static void print_json(const struct job *job, const struct image *image,
                       const struct answer *answer)
{
    const mamba_info *info = mamba_model_info(job->model);
    const size_t pixels = (size_t)info->height * info->width * info->channels;
    printf("{\"prediction\":%zu,\"class\":", answer->class);
    print_json_text(mamba_class_name(job->model, (uint32_t)answer->class));
    print_array("probabilities", answer->probabilities, info->n_classes, "]");
    print_array("logits", answer->logits, info->n_classes, "]");
    printf(",\"members_asked\":%u", answer->asked);
    if (image->picture)
        printf(
            ",\"picture\":{\"width\":%zu,\"height\":%zu,\"channels\":%zu,\"preparation\":\"%s\"}",
            image->picture->width, image->picture->height, image->picture->channels,
            info->preparation ? "mnist" : "resize");
    for (size_t i = 0; job->options->show && i < pixels; i++)
        printf("%s%.9g%s", i ? "," : ",\"pixels\":[", pixel_at(image, i),
               i + 1 < pixels ? "" : "]");
    printf("}\n");
}

/* Prints an image as text, two characters per pixel: the mean of its channels. */
static void print_shades(const struct job *job, const struct image *image)
{
    static const char shades[] = " .:-=+*#%@";
    const mamba_info *info = mamba_model_info(job->model);
    size_t i = 0;
    for (size_t y = 0; y < info->height; y++) {
        for (size_t x = 0; x < info->width; x++) {
            double sum = 0;
            for (size_t channel = 0; channel < info->channels; channel++)
                sum += pixel_at(image, i++);
            /* A mapped file may have other values than when it was checked. */
            const double level = sum / (255.0 * info->channels) * 9 + 0.5;
            const char shade = shades[level >= 0 && level < 10 ? (size_t)level : 0];
            printf("%c%c", shade, shade);
        }
        printf("\n");
    }
}

/* Number of characters of UTF-8. */
static int characters(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((uint8_t)*text & 0xC0) != 0x80;
    return n;
}

static void print_table(const mamba_model *model, const struct answer *answer)
{
    static const char bar[] = "########################################";
    const uint32_t n = mamba_model_info(model)->n_classes;
    int width = 5;
    for (uint32_t i = 0; i < n; i++) {
        const int name = characters(mamba_class_name(model, i));
        width = name > width ? name : width;
    }
    printf("class %s\n", mamba_class_name(model, (uint32_t)answer->class));
    for (uint32_t i = 0; i < n; i++) {
        const char *name = mamba_class_name(model, i);
        const float length = answer->probabilities[i] * (float)(sizeof bar - 1) + 0.5f;
        printf("%*s%s  %8.4f %%  %.*s\n", width - characters(name), "", name,
               100.0 * (double)answer->probabilities[i], (int)length, bar);
    }
    if (mamba_model_info(model)->members > 1)
        printf("members asked: %u of %u\n", answer->asked, mamba_model_info(model)->members);
}

static mamba_status predict(const struct job *job, const struct image *image, mamba_error *error)
{
    const size_t n = mamba_model_info(job->model)->n_classes;
    const size_t bytes = mamba_batch_bytes(job->model, 1);
    struct answer answer;
    void *arena = malloc(bytes);
    if (!arena)
        return mamba_fail(error, MAMBA_ERR_MEMORY, NULL, "no memory for %zu bytes", bytes);
    mamba_status status = image->picture
                              ? mamba_forward_batch_u8(job->model, arena, bytes, 1, image->bytes, 1,
                                                       answer.logits, &answer.asked, error)
                              : mamba_forward_batch(job->model, arena, bytes, 1, image->floats, 1,
                                                    answer.logits, &answer.asked, error);
    free(arena);
    if (status != MAMBA_OK)
        return status;
    answer.class = argmax(answer.logits, n);
    mamba_softmax(answer.logits, answer.probabilities, n);
    if (job->options->json) {
        print_json(job, image, &answer);
        return MAMBA_OK;
    }
    if (job->options->show)
        print_shades(job, image);
    print_table(job->model, &answer);
    return MAMBA_OK;
}

static mamba_status predict_picture(const struct job *job, struct input *input, mamba_error *error)
{
    const mamba_info *info = mamba_model_info(job->model);
    const size_t bytes = (size_t)info->height * info->width * info->channels;
    mamba_picture picture;
    uint8_t *copy, *prepared = NULL;
    mamba_status status = mamba_netpbm_read(&picture, &copy, input, error);
    if (status == MAMBA_OK && !(prepared = malloc(bytes)))
        status = mamba_fail(error, MAMBA_ERR_MEMORY, NULL, "no memory for %zu bytes", bytes);
    if (status == MAMBA_OK) {
        mamba_error why;
        status = mamba_prepare_for_model(job->model, &picture, prepared, &why);
        if (status != MAMBA_OK)
            mamba_fail(error, status, input->path, "%s", why.message);
    }
    free(copy);
    if (status == MAMBA_OK)
        status = predict(job, &(struct image){.bytes = prepared, .picture = &picture}, error);
    free(prepared);
    return status;
}

mamba_status command_predict(const struct job *job, mamba_error *error)
{
    const mamba_info *info = mamba_model_info(job->model);
    const struct options *options = job->options;
    struct input input;
    mamba_status status = mamba_input_open(&input, options->positional[1], options->access, error);
    if (status == MAMBA_OK && mamba_is_netpbm(&input.file)) {
        status = predict_picture(job, &input, error);
    } else if (status == MAMBA_OK) {
        status = mamba_raw_image_check(&input, (size_t)info->height * info->width * info->channels,
                                       error);
        const float *floats = (const float *)(const void *)input.file.data;
        if (status == MAMBA_OK)
            status = predict(job, &(struct image){.floats = floats}, error);
    }
    mamba_input_close(&input);
    return status;
}
