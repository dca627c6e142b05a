/* Opening and closing models. */
#include <stdlib.h>

#include "class_names.h"
#include "context.h"
#include "denormals.h"
#include "error.h"
#include "fold.h"
#include "header.h"
#include "tensors.h"

/* Checks what follows the header of model->file, and gets the model ready to run. `names` is memory
 * for the class names. */
static mamba_status load(struct mamba_model *model, char *names, const char *path,
                         mamba_error *error)
{
    mamba_status status;
    if ((status = mamba_check_members(model, path, error)) != MAMBA_OK ||
        (status = mamba_check_class_names(model, names, path, error)) != MAMBA_OK ||
        (status = mamba_check_tensors(model, path, error)) != MAMBA_OK)
        return status;
    const char *wanted = getenv("MAMBA_ISA");
    model->kernels = mamba_choose_kernels(wanted);
    if (!model->kernels)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "MAMBA_ISA: got %.60s, expected scalar, neon, avx2 or avx512, if the "
                          "processor has it",
                          wanted);
    if (mamba_context_bytes(model) == 0)
        return mamba_fail(error, MAMBA_ERR_MEMORY, path, "too large for this address space");
    if (!mamba_fold(model))
        return mamba_fail(error, MAMBA_ERR_MEMORY, path, "no memory for the folded weights");
    return MAMBA_OK;
}

/* Owns `file` from now on: closes it on an error. Messages call it `path`. */
static mamba_status new_model(mamba_model **out, struct file_bytes file, const char *path,
                              mamba_error *error)
{
    const uint64_t saved = denormals_off();
    struct mamba_info info;
    struct mamba_model *model = NULL;
    mamba_status status = mamba_check_header(&info, &file, path, error);
    if (status == MAMBA_OK) {
        model = calloc(1, sizeof *model + info.members * sizeof *model->members + info.names_bytes);
        if (!model)
            status =
                mamba_fail(error, MAMBA_ERR_MEMORY, path, "no memory for the table of its tensors");
    }
    if (!model) {
        mamba_file_close(&file);
        denormals_restore(saved);
        return status;
    }
    model->file = file;
    model->info = info;
    for (int i = 0; i < 256; i++)
        model->pixel_values[i] = ((float)i / 255.0f - info.pixel_mean) / info.pixel_std;
    status = load(model, (char *)&model->members[info.members], path, error);
    denormals_restore(saved);
    if (status == MAMBA_OK)
        *out = model;
    else
        mamba_model_close(model);
    return status;
}

static mamba_status open_file(mamba_model **out, const char *path, enum file_access access,
                              mamba_error *error)
{
    if (out)
        *out = NULL;
    if (!out || !path)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "opening a model: %s is NULL",
                          out ? "path" : "out");
    struct file_bytes file;
    mamba_status status = mamba_file_open(&file, path, access, error);
    if (status == MAMBA_OK)
        return new_model(out, file, path, error);
    mamba_file_close(&file);
    return status;
}

mamba_status mamba_model_open(mamba_model **out, const char *path, mamba_error *error)
{
    return open_file(out, path, FILE_MAPPED, error);
}

mamba_status mamba_model_read(mamba_model **out, const char *path, mamba_error *error)
{
    return open_file(out, path, FILE_COPIED, error);
}

mamba_status mamba_model_from_bytes(mamba_model **out, const void *bytes, size_t size,
                                    mamba_error *error)
{
    if (out)
        *out = NULL;
    if (!out || (!bytes && size > 0) || (uintptr_t)bytes % sizeof(float) != 0)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "opening a model: %s, expected bytes aligned for a float",
                          !out ? "out is NULL"
                               : (bytes ? "bytes are not aligned" : "bytes is NULL"));
    const struct file_bytes file = {.data = bytes, .size = size, .access = FILE_BORROWED};
    return new_model(out, file, NULL, error);
}

void mamba_model_close(mamba_model *model)
{
    if (!model)
        return;
    mamba_file_close(&model->file);
    free(model->folds);
    free(model);
}

const mamba_info *mamba_model_info(const mamba_model *model)
{
    return &model->info;
}

const mamba_info *mamba_member_info(const mamba_model *model, uint32_t member)
{
    return member < model->info.members ? &model->members[member].info : NULL;
}

mamba_status mamba_set_exit_margin(mamba_model *model, float exit_margin, mamba_error *error)
{
    if (!model)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "mamba_set_exit_margin: model is NULL");
    const mamba_status status = mamba_check_exit_margin(exit_margin, error);
    if (status != MAMBA_OK)
        return status;
    model->info.exit_margin = exit_margin;
    for (uint32_t i = 0; i < model->info.members; i++)
        model->members[i].info.exit_margin = exit_margin;
    return MAMBA_OK;
}

const char *mamba_model_isa(const mamba_model *model)
{
    return model->kernels->name;
}
