/* The subcommands. Each prints its result on stdout and its timing on stderr. Its status becomes
 * the exit code. */
#ifndef MAMBA_CLI_COMMANDS_H
#define MAMBA_CLI_COMMANDS_H

#include "options.h"

/* The input of a command. */
struct job {
    const struct options *options;
    mamba_model *model;  /* the first file of the command line, with the --exit-margin */
    double load_seconds; /* of the model */
};

typedef mamba_status (*command_function)(const struct job *job, mamba_error *error);

mamba_status command_predict(const struct job *job, mamba_error *error);
mamba_status command_eval(const struct job *job, mamba_error *error);
mamba_status command_info(const struct job *job, mamba_error *error);
mamba_status command_bench(const struct job *job, mamba_error *error);
mamba_status command_embed(const struct job *job, mamba_error *error);

/* common.c */

/* Opens the model, runs the command and closes the model. */
mamba_status run_command(command_function command, const struct options *options,
                         mamba_error *error);

/* Prints a text as JSON. */
void print_json_text(const char *text);

/* Returns the index of the largest of logits [n]; of equal ones, the first. */
size_t argmax(const float *logits, size_t n);

/* Returns `wanted`, or `otherwise` if that is 0. A build without threads warns on stderr and
 * returns 1. */
int choose_threads(int wanted, int otherwise);

/* Members that images needed. */
struct asked {
    size_t images[64]; /* that asked 1, 2, ... members */
    size_t n;          /* of all images */
    size_t sum;        /* members of all images */
};

/* Counts asked [n], the members that each of n more images needed. */
void count_asked(struct asked *out, const uint8_t *asked, size_t n);

/* Prints what was counted, as text or as two fields of JSON. */
void print_asked(const struct asked *asked, const mamba_model *model, bool json);

/* posix.c and windows.c */

double now_seconds(void); /* of a monotonic clock */

/* Returns the part of a path after its folders. */
const char *file_name(const char *path);

/* Writes `data` [bytes] to the file `path`, completely or not at all: to a new file next to it,
 * which is synced and renamed. Links are followed, and a file that exists keeps its access rights.
 * Anything but a regular file is refused, and so is the one that stdout or stderr goes to, and the
 * file `written` (or NULL). Threads that make files meanwhile would get the wrong mode. */
mamba_status write_file(const char *path, const char *written, const void *data, size_t bytes,
                        mamba_error *error);

#endif
