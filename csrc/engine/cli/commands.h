/* The subcommands. Each prints its result on stdout and its timing on stderr, and returns the
 * status that becomes the exit code. */
#ifndef MAMBA_CLI_COMMANDS_H
#define MAMBA_CLI_COMMANDS_H

#include "options.h"

mamba_status command_predict(const struct options *options, mamba_error *error);
mamba_status command_eval(const struct options *options, mamba_error *error);
mamba_status command_info(const struct options *options, mamba_error *error);
mamba_status command_bench(const struct options *options, mamba_error *error);

/* Shared by the commands. */

double now_seconds(void); /* of a clock that only goes forward */

/* The model that the command line names first. */
mamba_status open_model(mamba_model **out, const struct options *options, mamba_error *error);

/* The index of the largest of logits [n], which are finite; the first one of equals. */
size_t argmax(const float *logits, size_t n);

/* Threads to use: `wanted`, or `otherwise` if that is 0; says so on stderr if the build has only
 * one. */
int choose_threads(int wanted, int otherwise);

/* `data` [bytes] as the file `path`, complete or not at all: written beside it, synced, renamed. */
mamba_status write_file(const char *path, const void *data, size_t bytes, mamba_error *error);

#endif
