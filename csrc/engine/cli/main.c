/* The `mamba` command: chooses the subcommand, prints its error, returns its exit code. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "error.h"
#include "process.h"
#include "system.h"

static const char HELP[] =
    "mamba classifies images with a small Mamba model.\n"
    "\n"
    "  %s %s\n"
    "    classify a picture: binary PGM or PPM of any size; or the model's own input,\n"
    "    height x width (x channels) float32 in 0..1, little-endian.\n"
    "    --show prints what the model sees\n"
    "  %s eval %s\n"
    "    measure the accuracy; write float32 logits and members asked as bytes\n"
    "  %s info %s\n"
    "    show a model file's header\n"
    "  %s bench %s\n"
    "    measure the time per image: of IMAGES, or on noise with all members\n"
    "  %s embed %s\n"
    "    print the model as a C array, named like the file or NAME\n"
    "  %s --help | --version\n"
    "\n"
    "An ensemble asks members until their mean is as clear as the file's exit margin, or X.\n"
    "INPUT, IMAGES and LABELS may be gzip files, found also as FILE.gz; - is stdin.\n"
    "--no-mmap copies files instead of mapping them. Timing goes to stderr.\n"
    "\n"
    "Exit codes: 0 success; 2 usage; 3 cannot read or write a file; 4 bad model file;\n"
    "5 bad input, image or label file, or of another size; 6 no memory; 7 nothing drawn.\n";

struct command {
    struct syntax syntax;
    command_function run;
};

enum { EVAL, INFO, BENCH, EMBED, PREDICT };

static const struct command COMMANDS[] = {
    [EVAL] = {{"eval",
               "MODEL IMAGES.idx LABELS.idx [--json] [--logits FILE] [--asked FILE] [--threads N] "
               "[--exit-margin X]",
               3, 3, ALLOW_LOGITS | ALLOW_THREADS | ALLOW_MARGIN},
              command_eval},
    [INFO] = {{"info", "MODEL [--json]", 1, 1, 0}, command_info},
    [BENCH] = {{"bench",
                "MODEL [IMAGES.idx] [--batch N] [--threads N] [--rounds N] [--json] "
                "[--exit-margin X]",
                1, 2, ALLOW_BATCH | ALLOW_THREADS | ALLOW_ROUNDS | ALLOW_MARGIN},
               command_bench},
    [EMBED] = {{"embed", "MODEL [--name NAME]", 1, 1, ALLOW_NAME}, command_embed},
    [PREDICT] = {{"", "MODEL INPUT [--show] [--json] [--exit-margin X]", 2, 2,
                  ALLOW_SHOW | ALLOW_MARGIN},
                 command_predict},
};

/* Sets *usage if the arguments are wrong. `me` is the command's name. */
static mamba_status run(int argc, char **argv, const char *me, const struct syntax **usage,
                        mamba_error *error)
{
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("%s %s\n", me, mamba_version());
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
        *usage = &command->syntax;
    if (status == MAMBA_OK && options.help)
        printf(HELP, me, COMMANDS[PREDICT].syntax.usage, me, COMMANDS[EVAL].syntax.usage, me,
               COMMANDS[INFO].syntax.usage, me, COMMANDS[BENCH].syntax.usage, me,
               COMMANDS[EMBED].syntax.usage, me);
    else if (status == MAMBA_OK)
        status = run_command(command->run, &options, error);
    if (status != MAMBA_OK && first == 1 && argc > 1 && argv[1][0] != '-' &&
        !system_exists(argv[1]))
        mamba_fail(error, status, argv[1],
                   "neither a file nor a subcommand: eval, info, bench, embed");
    return status;
}

int main(int argc, char **argv)
{
    mamba_error error = {MAMBA_OK, ""};
    const struct syntax *usage = NULL;
    argv = process_start(&argc, argv);
    const char *me = argc ? file_name(argv[0]) : "mamba"; /* mnist-mamba if installed */
    mamba_status status = run(argc, argv, me, &usage, &error);
    if (status == MAMBA_OK && (fflush(stdout) != 0 || ferror(stdout)))
        status = mamba_fail(&error, MAMBA_ERR_IO, "stdout", "cannot write: %s", strerror(errno));
    if (status != MAMBA_OK)
        fprintf(stderr, "%s: %s\n", me, error.message);
    if (usage)
        fprintf(stderr, "usage: %s %s%s%s\n", me, usage->name, usage->name[0] ? " " : "",
                usage->usage);
    return (int)status;
}
