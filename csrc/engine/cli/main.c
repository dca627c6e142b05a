/* The `mamba` command: picks the subcommand, prints its error, returns its exit code. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "error.h"

static const char HELP[] =
    "mamba classifies images with a small Mamba model.\n"
    "\n"
    "  mamba MODEL INPUT.bin [--json]\n"
    "      one image of height x width float32 in 0..1, little-endian\n"
    "  mamba eval MODEL IMAGES.idx LABELS.idx [--json] [--logits FILE] [--threads N]\n"
    "      the accuracy on a set; FILE gets all logits as float32\n"
    "  mamba info MODEL [--json]\n"
    "      what is in a model file\n"
    "  mamba bench MODEL [--batch N] [--threads N] [--rounds N] [--json]\n"
    "      how long an image takes, on synthetic images\n"
    "  mamba --help | --version\n"
    "\n"
    "Files are mapped; --no-mmap copies them, for files that others may change meanwhile. Results\n"
    "go to stdout, timing and errors to stderr. A file that is named like a subcommand or an\n"
    "option is reached as ./NAME.\n"
    "\n"
    "Exit codes: 0 done; 2 usage; 3 a file cannot be opened, read or written; 4 bad model file;\n"
    "5 bad input, image or label file, or one that does not fit the model; 6 out of memory.\n";

struct command {
    const char *name; /* NULL: none is named */
    mamba_status (*run)(const struct options *, mamba_error *);
    int n_positional, allowed;
};

static const struct command COMMANDS[] = {
    {"eval", command_eval, 3, ALLOW_LOGITS | ALLOW_THREADS},
    {"info", command_info, 1, 0},
    {"bench", command_bench, 1, ALLOW_BATCH | ALLOW_THREADS | ALLOW_ROUNDS},
    {NULL, command_predict, 2, 0},
};

static mamba_status run(int argc, char **argv, mamba_error *error)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("mamba %s\n", mamba_version());
        return MAMBA_OK;
    }
    const struct command *command = COMMANDS;
    while (command->name && (argc < 2 || strcmp(argv[1], command->name) != 0))
        command++;
    const int first = command->name ? 2 : 1;
    struct options options;
    mamba_status status = parse_options(&options, argc - first, argv + first, command->n_positional,
                                        command->allowed, error);
    if (status != MAMBA_OK)
        return status;
    if (options.help) {
        fputs(HELP, stdout);
        return MAMBA_OK;
    }
    return command->run(&options, error);
}

int main(int argc, char **argv)
{
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = run(argc, argv, &error);
    if (status == MAMBA_OK && (fflush(stdout) != 0 || ferror(stdout)))
        status = mamba_fail(&error, MAMBA_ERR_IO, "stdout", "cannot write: %s", strerror(errno));
    if (status != MAMBA_OK)
        fprintf(stderr, "mamba: %s\n", error.message);
    if (status == MAMBA_ERR_ARGUMENT)
        fprintf(stderr, "\n%s", HELP);
    return (int)status;
}
