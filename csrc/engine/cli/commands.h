/* The subcommands. Each prints its result on stdout and its timing on stderr. Its status becomes
 * the exit code. */
#ifndef MAMBA_CLI_COMMANDS_H
#define MAMBA_CLI_COMMANDS_H

#include "options.h"

mamba_status command_predict(const struct options *options, mamba_error *error);
mamba_status command_eval(const struct options *options, mamba_error *error);
mamba_status command_info(const struct options *options, mamba_error *error);
mamba_status command_bench(const struct options *options, mamba_error *error);

/* common.c */

double now_seconds(void); /* of a monotonic clock */

/* Opens the first file of the command line. */
mamba_status open_model(mamba_model **out, const struct options *options, mamba_error *error);

/* Returns the index of the largest of logits [n]; of equal ones, the first. */
size_t argmax(const float *logits, size_t n);

/* Returns `wanted`, or `otherwise` if that is 0. A build without threads warns on stderr and
 * returns 1. */
int choose_threads(int wanted, int otherwise);

/* Writes `data` [bytes] to the file `path`, completely or not at all: to a temporary file next to
 * it, which is synced and renamed. */
mamba_status write_file(const char *path, const void *data, size_t bytes, mamba_error *error);

#endif
