/* Reads any bytes as a model file: as they are, and with a corrected checksum, so that it hides no
 * other check from the fuzzer. A model that opens is run. */
#include "crc32.h"
#include "finite.h"
#include "header.h"
#include "shape.h"
#include "target.h"

enum { CRC_AT = 12 };
enum { MAX_WORK = 1 << 18 }; /* larger models are not run: they take time and reach nothing new */

static bool is_small(const mamba_info *info)
{
    const uint64_t length = info->length, pixels = mamba_image_values(info);
    const uint64_t width = info->stem_width;
    return length * info->d_inner * info->d_state * info->n_layers <= MAX_WORK &&
           length * info->d_model * info->d_inner * info->n_layers <= MAX_WORK &&
           pixels * (width + 1) <= MAX_WORK &&
           (info->stem != STEM_CONV3 || pixels * width * width <= MAX_WORK);
}

static void run(const mamba_model *model)
{
    const mamba_info *info = mamba_model_info(model), *member;
    const size_t pixels = mamba_image_values(info), bytes = mamba_context_bytes(model);
    for (uint32_t i = 0; (member = mamba_member_info(model, i)); i++)
        if (!is_small(member))
            return;
    for (uint32_t i = 0; i < info->n_classes; i++)
        if (strlen(mamba_class_name(model, i)) < 1 || strlen(mamba_class_name(model, i)) > 255)
            abort();
    uint8_t *image = malloc(pixels);
    void *arena = malloc(bytes);
    float logits[256]; /* as many as any model has */
    mamba_context *context;
    if (!image || !arena || mamba_context_init(&context, model, arena, bytes, NULL) != MAMBA_OK)
        abort();
    for (size_t i = 0; i < pixels; i++)
        image[i] = (uint8_t)(i * 29);
    mamba_status status = mamba_forward_u8(context, image, logits);
    if (status != MAMBA_OK && status != MAMBA_ERR_MODEL)
        abort();
    for (size_t i = 0; i < info->n_classes && status == MAMBA_OK; i++)
        if (!mamba_is_finite(logits[i]))
            abort();
    free(arena);
    free(image);
}

static void open_and_run(const uint8_t *bytes, size_t size)
{
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = mamba_model_from_bytes(&model, bytes, size, &error);
    if (status == MAMBA_OK)
        run(model);
    else
        check_error(status, &error, MAMBA_ERR_MODEL);
    mamba_model_close(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = exact_copy(data, size);
    open_and_run(bytes, size);
    if (size > CHECKED_FROM) {
        const uint32_t crc = mamba_crc32(bytes + CHECKED_FROM, size - CHECKED_FROM);
        memcpy(bytes + CRC_AT, &crc, sizeof crc);
        open_and_run(bytes, size);
    }
    free(bytes);
    return 0;
}
