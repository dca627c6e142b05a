#include <inttypes.h>
#include <stdio.h>

#include "commands.h"
#include "model.h"

/* How a name and its value are printed, as text or as JSON. */
struct style {
    char number[18], text[18], bare[18], real[18];
};
static const struct style TEXT = {"%-13s %" PRIu64 "\n", "%-13s %s\n", "%-13s %s\n",
                                  "%-13s %.9g\n"};
static const struct style JSON = {"\"%s\":%" PRIu64 ",", "\"%s\":\"%s\",", "\"%s\":%s,",
                                  "\"%s\":%.9g,"};

static const char *flag(uint32_t value)
{
    return value ? "true" : "false";
}

/* Prints the shape of a member. */
static void print_shape(const mamba_info *info, const struct style *style)
{
    /* Arrays, not pointers: those need relocations, which make ./mamba larger. */
    static const char stems[][6] = {"patch", "conv", "conv3"};
    static const char directions[][14] = {"forward", "alternate", "bidirectional", "cross"};
    static const char pools[][5] = {"mean", "last"};
    static const char names[][13] = {"patch_height", "patch_width", "stem_width", "d_model",
                                     "n_layers",     "d_state",     "d_conv",     "d_inner",
                                     "dt_rank",      "length"};
    const uint64_t values[] = {
        info->patch_height, info->patch_width, info->stem_width, info->d_model, info->n_layers,
        info->d_state,      info->d_conv,      info->d_inner,    info->dt_rank, info->length};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        printf(style->number, names[i], values[i]);
    printf(style->text, "stem", stems[info->stem]);
    printf(style->text, "direction", directions[info->direction]);
    printf(style->text, "pool", pools[info->pool]);
    printf(style->bare, "tied_a", flag(info->tied_a));
    printf(style->bare, "pos_embed", flag(info->pos_embed));
    printf(style->bare, "local_conv", flag(info->local_conv));
    printf(style->real, "norm_eps", (double)info->norm_eps);
}

static void print_header(const mamba_info *info, const struct style *style)
{
    static const char preparations[][7] = {"resize", "mnist"};
    static const char weight_types[][8] = {"float32", "int8"};
    static const char names[][11] = {"version",   "height",  "width",      "channels",
                                     "n_classes", "members", "parameters", "file_bytes"};
    const uint64_t values[] = {info->version,   info->height,  info->width,      info->channels,
                               info->n_classes, info->members, info->parameters, info->file_bytes};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        printf(style->number, names[i], values[i]);
    printf(style->text, "weight_type", weight_types[info->weight_type]);
    printf(style->text, "preparation", preparations[info->preparation]);
    printf(style->real, "exit_margin", (double)info->exit_margin);
    printf(style->real, "pixel_mean", (double)info->pixel_mean);
    printf(style->real, "pixel_std", (double)info->pixel_std);
}

/* The shape of the first member, and of each that has another shape than the one before. */
static void print_text(const mamba_model *model)
{
    const mamba_info *info = mamba_model_info(model);
    print_header(info, &TEXT);
    printf("%-13s", "class_names");
    for (uint32_t i = 0; i < info->n_classes; i++)
        printf("%s %s", i ? "," : "", mamba_class_name(model, i));
    printf("\n%-13s %08" PRIx32 "\n", "crc32", info->crc32);
    print_shape(info, &TEXT);
    for (uint32_t i = 1; i < info->members; i++) {
        if (model->members[i].same_shape)
            continue;
        printf("members from %" PRIu32 " on, counted from 0:\n", i);
        print_shape(mamba_member_info(model, i), &TEXT);
    }
}

/* The first member's shape stands among the header's fields, and once more in "shapes". */
static void print_json(const mamba_model *model)
{
    const mamba_info *info = mamba_model_info(model);
    putchar('{');
    print_header(info, &JSON);
    print_shape(info, &JSON);
    printf("\"shapes\":[");
    for (uint32_t i = 0; i < info->members; i++) {
        printf("%s{", i ? "," : "");
        print_shape(mamba_member_info(model, i), &JSON);
        printf("\"member\":%" PRIu32 "}", i);
    }
    printf("],\"class_names\":[");
    for (uint32_t i = 0; i < info->n_classes; i++) {
        printf("%s", i ? "," : "");
        print_json_text(mamba_class_name(model, i));
    }
    printf("],\"crc32\":\"%08" PRIx32 "\"}\n", info->crc32);
}

mamba_status command_info(const struct job *job, mamba_error *error)
{
    (void)error;
    if (job->options->json)
        print_json(job->model);
    else
        print_text(job->model);
    return MAMBA_OK;
}
