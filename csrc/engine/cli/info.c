#include <inttypes.h>
#include <stdio.h>

#include "commands.h"

static void print_numbers(const mamba_info *info, const char *number_format)
{
    /* Arrays, not pointers: those need relocations, which make ./mamba larger. */
    static const char names[][13] = {
        "version",     "height",     "width",   "channels", "n_classes",  "patch_height",
        "patch_width", "stem_width", "d_model", "n_layers", "d_state",    "d_conv",
        "d_inner",     "dt_rank",    "members", "length",   "parameters", "file_bytes"};
    const uint64_t values[] = {
        info->version,      info->height,      info->width,      info->channels, info->n_classes,
        info->patch_height, info->patch_width, info->stem_width, info->d_model,  info->n_layers,
        info->d_state,      info->d_conv,      info->d_inner,    info->dt_rank,  info->members,
        info->length,       info->parameters,  info->file_bytes};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        printf(number_format, names[i], values[i]);
}

static void print_flags(const mamba_info *info, const char *flag_format)
{
    static const char names[][11] = {"tied_a", "pos_embed", "local_conv"};
    const uint32_t values[] = {info->tied_a, info->pos_embed, info->local_conv};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        printf(flag_format, names[i], values[i] ? "true" : "false");
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
    printf("\"stem\":\"%s\",\"direction\":\"%s\",\"pool\":\"%s\",", stem_name(info),
           direction_name(info), pool_name(info));
    print_flags(info, "\"%s\":%s,");
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
    print_flags(info, "%-13s %s\n");
    printf("%-13s %.9g\n", "norm_eps", (double)info->norm_eps);
    printf("%-13s %.9g\n", "pixel_mean", (double)info->pixel_mean);
    printf("%-13s %.9g\n", "pixel_std", (double)info->pixel_std);
    printf("%-13s %08" PRIx32 "\n", "crc32", info->crc32);
}

mamba_status command_info(const struct job *job, mamba_error *error)
{
    (void)error;
    if (job->options->json)
        print_json(mamba_model_info(job->model));
    else
        print_table(mamba_model_info(job->model));
    return MAMBA_OK;
}
