#include <inttypes.h>
#include <stdio.h>

#include "commands.h"

/* Fields in header order: name and value of the numbers, then of the choices by name. */
static void print_numbers(const mamba_info *info, const char *number_format)
{
    const struct {
        const char *name;
        uint64_t value;
    } fields[] = {
        {"version", info->version},
        {"height", info->height},
        {"width", info->width},
        {"channels", info->channels},
        {"n_classes", info->n_classes},
        {"patch_height", info->patch_height},
        {"patch_width", info->patch_width},
        {"stem_width", info->stem_width},
        {"d_model", info->d_model},
        {"n_layers", info->n_layers},
        {"d_state", info->d_state},
        {"d_conv", info->d_conv},
        {"d_inner", info->d_inner},
        {"dt_rank", info->dt_rank},
        {"length", info->length},
        {"parameters", info->parameters},
        {"file_bytes", info->file_bytes},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        printf(number_format, fields[i].name, fields[i].value);
}

static const char *stem_name(const mamba_info *info)
{
    static const char names[][6] = {"patch", "conv", "conv3"};
    return names[info->stem];
}

static const char *direction_name(const mamba_info *info)
{
    static const char names[][14] = {"forward", "alternate", "bidirectional", "cross"};
    return names[info->direction];
}

static const char *pool_name(const mamba_info *info)
{
    return info->pool ? "last" : "mean";
}

static void print_json(const mamba_info *info)
{
    printf("{");
    print_numbers(info, "\"%s\":%" PRIu64 ",");
    printf("\"stem\":\"%s\",\"direction\":\"%s\",\"pool\":\"%s\",\"tied_a\":%s,\"pos_embed\":%s,",
           stem_name(info), direction_name(info), pool_name(info), info->tied_a ? "true" : "false",
           info->pos_embed ? "true" : "false");
    printf("\"norm_eps\":%.9g,\"pixel_mean\":%.9g,\"pixel_std\":%.9g,\"crc32\":\"%08" PRIx32
           "\"}\n",
           (double)info->norm_eps, (double)info->pixel_mean, (double)info->pixel_std, info->crc32);
}

static void print_table(const mamba_info *info)
{
    print_numbers(info, "%-13s %" PRIu64 "\n");
    printf("%-13s %s\n", "stem", stem_name(info));
    printf("%-13s %s\n", "direction", direction_name(info));
    printf("%-13s %s\n", "pool", pool_name(info));
    printf("%-13s %s\n", "tied_a", info->tied_a ? "true" : "false");
    printf("%-13s %s\n", "pos_embed", info->pos_embed ? "true" : "false");
    printf("%-13s %.9g\n", "norm_eps", (double)info->norm_eps);
    printf("%-13s %.9g\n", "pixel_mean", (double)info->pixel_mean);
    printf("%-13s %.9g\n", "pixel_std", (double)info->pixel_std);
    printf("%-13s %08" PRIx32 "\n", "crc32", info->crc32);
}

mamba_status command_info(const struct options *options, mamba_error *error)
{
    mamba_model *model;
    mamba_status status = open_model(&model, options, error);
    if (status != MAMBA_OK)
        return status;
    if (options->json)
        print_json(mamba_model_info(model));
    else
        print_table(mamba_model_info(model));
    mamba_model_close(model);
    return MAMBA_OK;
}
