#include "class_names.h"

#include <string.h>

#include "error.h"
#include "header.h"

enum { MAX_NAME = 255 };

/* Returns the bytes of the UTF-8 character at `text`, or 0 if that is a control character or not
 * UTF-8. Terminals act on U+0080 to U+009F too. The NUL after the text ends every search. */
static size_t character(const uint8_t *text)
{
    static const uint32_t smallest[] = {0, 0x20, 0xA0, 0x800, 0x10000};
    const uint8_t lead = text[0];
    const size_t n = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint32_t code = n == 1 ? lead : lead & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xC0) != 0x80)
            return 0;
        code = code << 6 | (text[i] & 0x3Fu);
    }
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    return code < smallest[n] || code == 0x7F || surrogate || code > 0x10FFFF || lead >= 0xF8 ? 0
                                                                                              : n;
}

/* Checks the name of class `i` at `name`, of which `left` bytes are in the block. */
static mamba_status check_name(const char *name, size_t left, const char *names, uint32_t i,
                               const char *path, mamba_error *error)
{
    const char *end = memchr(name, 0, left);
    const size_t size = end ? (size_t)(end - name) : left;
    if (!end || size < 1 || size > MAX_NAME)
        return mamba_fail(error, MAMBA_ERR_MODEL, path,
                          "class name %u: got %zu bytes%s, expected 1..%d and a NUL", i, size,
                          end ? "" : " without a NUL", MAX_NAME);
    for (size_t at = 0, n; at < size; at += n)
        if ((n = character((const uint8_t *)name + at)) == 0)
            return mamba_fail(error, MAMBA_ERR_MODEL, path,
                              "class name %u: got 0x%02X as byte %zu, expected UTF-8 without "
                              "control characters",
                              i, (uint8_t)name[at], at);
    for (uint32_t before = 0; before < i; before++, names += strlen(names) + 1)
        if (strcmp(names, name) == 0)
            return mamba_fail(error, MAMBA_ERR_MODEL, path,
                              "class name %u: got the name of class %u again, expected another", i,
                              before);
    return MAMBA_OK;
}

mamba_status mamba_check_class_names(struct mamba_model *model, char *names, const char *path,
                                     mamba_error *error)
{
    const struct mamba_info *info = &model->info;
    const size_t bytes = info->names_bytes;
    size_t used = 0;
    memcpy(names, model->file.data + mamba_names_at(info), bytes);
    model->class_names = names;
    for (uint32_t i = 0; i < info->n_classes; i++, used += strlen(names + used) + 1) {
        mamba_status status = check_name(names + used, bytes - used, names, i, path, error);
        if (status != MAMBA_OK)
            return status;
    }
    const size_t needed = (used + NAMES_STEP - 1) / NAMES_STEP * NAMES_STEP;
    if (bytes != needed)
        return mamba_fail(error, MAMBA_ERR_MODEL, path, "names_bytes: got %zu, expected %zu", bytes,
                          needed);
    for (size_t i = used; i < bytes; i++)
        if (names[i] != 0)
            return mamba_fail(error, MAMBA_ERR_MODEL, path,
                              "class names: got 0x%02X as byte %zu, after the last name, expected "
                              "0",
                              (uint8_t)names[i], i);
    return MAMBA_OK;
}

const char *mamba_class_name(const mamba_model *model, uint32_t class_index)
{
    const char *name = model->class_names;
    if (class_index >= model->info.n_classes)
        return NULL;
    while (class_index-- > 0)
        name += strlen(name) + 1;
    return name;
}
