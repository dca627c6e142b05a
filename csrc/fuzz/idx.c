/* Reads any bytes as IDX images and as IDX labels. If they open, every pixel and label is read. */
#include "cli/idx.h"
#include "target.h"

static volatile uint8_t sink;

static void read_all(const uint8_t *data, size_t size)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + data[i]);
    sink = sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = exact_copy(data, size);
    const struct file_bytes file = {.data = bytes, .size = size, .access = FILE_BORROWED};
    struct idx images = {.input = {.file = file, .path = "images"}};
    struct idx labels = {.input = {.file = file, .path = "labels"}};
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = mamba_idx_check(&images, IDX_IMAGES, &error);
    if (status == MAMBA_OK)
        read_all(images.data, images.n * images.height * images.width * images.channels);
    else
        check_error(status, &error, MAMBA_ERR_INPUT);
    status = mamba_idx_check(&labels, IDX_LABELS, &error);
    if (status == MAMBA_OK)
        read_all(labels.data, labels.n);
    else
        check_error(status, &error, MAMBA_ERR_INPUT);
    free(bytes);
    return 0;
}
