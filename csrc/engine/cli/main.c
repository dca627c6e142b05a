/* The `mamba` command: chooses the subcommand, prints its error, returns its exit code. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "error.h"

static const char HELP[] =
    "mamba classifies images with a small Mamba model.\n"
    "\n"
    "  mamba MODEL INPUT.bin [--json]\n"
    "      classify one image: height x width float32 in 0..1, little-endian\n"
    "  mamba eval MODEL IMAGES.idx LABELS.idx [--json] [--logits FILE] [--threads N]\n"
    "      measure the accuracy; write all logits to FILE as float32\n"
    "  mamba info MODEL [--json]\n"
    "      show the header of a model file\n"
    "  mamba bench MODEL [--batch N] [--threads N] [--rounds N] [--json]\n"
    "      measure the time per image, on synthetic images\n"
    "  mamba --help | --version\n"
    "\n"
    "Files are mapped; --no-mmap copies them, in case others change them meanwhile. Results go to\n"
    "stdout, timing and errors to stderr. Write ./NAME for a file named like a subcommand or "
    "option.\n"
    "\n"
    "Exit codes: 0 success; 2 usage; 3 cannot open, read or write a file; 4 bad model file;\n"
    "5 bad input, image or label file, or it does not fit the model; 6 out of memory.\n";

struct command {
    struct syntax syntax;
    command_function run;
};

static const struct command COMMANDS[] = {
    {{"eval", "MODEL IMAGES.idx LABELS.idx", 3, ALLOW_LOGITS | ALLOW_THREADS}, command_eval},
    {{"info", "MODEL", 1, 0}, command_info},
    {{"bench", "MODEL", 1, ALLOW_BATCH | ALLOW_THREADS | ALLOW_ROUNDS}, command_bench},
    {{"", "MODEL INPUT.bin", 2, 0}, command_predict},
};

static mamba_status run(int argc, char **argv, mamba_error *error)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("mamba %s\n", mamba_version());
        return MAMBA_OK;
    }
    const struct command *command = COMMANDS;
    while (command->syntax.name[0] && (argc < 2 || strcmp(argv[1], command->syntax.name) != 0))
        command++;
    const int first = command->syntax.name[0] ? 2 : 1;
    struct options options;
    mamba_status status =
        parse_options(&options, argc - first, argv + first, &command->syntax, error);
    if (status != MAMBA_OK)
        return status;
    if (options.help) {
        fputs(HELP, stdout);
        return MAMBA_OK;
    }
    return run_command(command->run, &options, error);
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
