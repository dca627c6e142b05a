/* A main for a fuzz target where there is no libFuzzer. It mutates inputs in one process, and keeps
 * inputs that reach new code (gcc's -fsanitize-coverage=trace-pc).
 *
 *     TARGET FILE|FOLDER...              run each file once
 *     TARGET --seconds N FILE|FOLDER...  then mutate them for N seconds
 *     TARGET --runs N FILE|FOLDER...     or until N inputs have run; --seed S repeats a run
 *
 * An input that ends the process, or takes more than 20 seconds, is written to crash.bin in the
 * current folder. This file itself is compiled without coverage. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "target.h"

void __sanitizer_cov_trace_pc(void);
void __sanitizer_set_death_callback(void (*callback)(void));
const char *__ubsan_default_options(void);

/* Makes UBSan abort, as the target does, so that the input is written. */
__attribute__((visibility("default"))) const char *__ubsan_default_options(void)
{
    return "abort_on_error=1:print_stacktrace=1";
}

enum { MAX_SIZE = 1 << 16, MAX_INPUTS = 4096, PLACES = 1 << 16, HANG_SECONDS = 20 };

struct input {
    uint8_t *bytes;
    size_t size;
};

static struct input inputs[MAX_INPUTS];
static size_t n_inputs;
static uint8_t current[MAX_SIZE]; /* the input that runs now */
static size_t current_size;
static uint64_t executions, random_state;
static bool seen[PLACES], anything_new;

/* gcc inserts a call into every basic block of the code under test. */
void __sanitizer_cov_trace_pc(void)
{
    /* Relative to the target's entry point, so that it does not depend on the load address. */
    const uintptr_t pc =
        (uintptr_t)__builtin_return_address(0) - (uintptr_t)&LLVMFuzzerTestOneInput;
    bool *place = &seen[(pc ^ pc >> 16) % PLACES];
    anything_new |= !*place;
    *place = true;
}

static void leave_crash(void)
{
    FILE *file = fopen("crash.bin", "wb");
    if (file) {
        fwrite(current, 1, current_size, file);
        fclose(file);
    }
    fprintf(stderr, "execution %" PRIu64 ": its %zu bytes are in crash.bin\n", executions,
            current_size);
}

static void on_signal(int number)
{
    leave_crash();
    signal(number, SIG_DFL);
    raise(number);
}

static void execute(void)
{
    anything_new = false;
    executions++;
    alarm(HANG_SECONDS);
    LLVMFuzzerTestOneInput(current, current_size);
    alarm(0);
}

static void keep_current(void)
{
    if (n_inputs == MAX_INPUTS)
        return;
    inputs[n_inputs].bytes = exact_copy(current, current_size);
    inputs[n_inputs++].size = current_size;
}

/* ---- mutation ------------------------------------------------------------------------------ */

static uint64_t below(uint64_t n)
{
    random_state ^= random_state << 13; /* xorshift, Marsaglia 2003 */
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return n ? random_state % n : 0;
}

/* Values that break arithmetic on sizes and floats. */
static const uint32_t INTERESTING[] = {
    0,          1,          2,          3,          15,         16,         17,         255,
    256,        257,        4095,       4096,       4097,       8192,       8193,       65535,
    65536,      65537,      0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x01000000, 0x00FFFFFF, 0x40000000,
    0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x00000001, 0x00800000};

static void put_number(void)
{
    uint32_t value = INTERESTING[below(sizeof INTERESTING / sizeof *INTERESTING)];
    if (current_size < sizeof value)
        return;
    /* Most fields are near the beginning, at multiples of four. */
    const size_t reach = below(4) ? (current_size < 320 ? current_size : 320) : current_size;
    const size_t at = below(reach / 4) * 4;
    uint32_t old;
    memcpy(&old, current + at, sizeof old);
    switch (below(4)) {
    case 0:
        value = old + (uint32_t)below(33) - 16;
        break;
    case 1:
        value = __builtin_bswap32(value);
        break;
    case 2:
        value = below(2) ? old * 2 : old / 2;
        break;
    }
    memcpy(current + at, &value, sizeof value);
}

static void resize(void)
{
    size_t size = below(MAX_SIZE);
    if (below(4))
        size = current_size + below(129) - 64;
    if (size > MAX_SIZE)
        return;
    for (size_t i = current_size; i < size; i++)
        current[i] = (uint8_t)(below(3) ? 0 : below(256));
    current_size = size;
}

/* Replaces the end by that of another input. */
static void splice(void)
{
    const struct input *other = &inputs[below(n_inputs)];
    const size_t at = below((other->size < current_size ? other->size : current_size) + 1);
    memcpy(current + at, other->bytes + at, other->size - at);
    current_size = other->size;
}

static void copy_within(void)
{
    if (current_size < 2)
        return;
    const size_t from = below(current_size), to = below(current_size);
    const size_t most = current_size - (from > to ? from : to);
    memmove(current + to, current + from, below(most + 1));
}

static void mutate(void)
{
    const struct input *start = &inputs[below(n_inputs)];
    memcpy(current, start->bytes, start->size);
    current_size = start->size;
    for (uint64_t left = 1 + below(5); left > 0; left--) {
        switch (below(8)) {
        case 0:
        case 1:
            if (current_size > 0)
                current[below(current_size)] ^= (uint8_t)(1u << below(8));
            break;
        case 2:
            if (current_size > 0)
                current[below(current_size)] = (uint8_t)below(256);
            break;
        case 3:
            if (below(4) == 0)
                resize();
            break;
        case 4:
            if (below(4) == 0)
                splice();
            break;
        case 5:
            if (below(4) == 0)
                copy_within();
            break;
        default:
            put_number();
        }
    }
}

/* ---- files ---------------------------------------------------------------------------------- */

static void run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    current_size = fread(current, 1, MAX_SIZE, file);
    fclose(file);
    execute();
    keep_current();
}

static int is_input(const struct dirent *entry)
{
    const size_t length = strlen(entry->d_name);
    return length > 4 && strcmp(entry->d_name + length - 4, ".bin") == 0;
}

static void run_path(const char *path)
{
    struct dirent **entries;
    const int n = scandir(path, &entries, is_input, alphasort);
    if (n < 0) {
        run_file(path);
        return;
    }
    for (int i = 0; i < n; i++) {
        char name[1000];
        snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
        run_file(name);
        free(entries[i]);
    }
    free(entries);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void fuzz(double seconds, uint64_t runs)
{
    const double start = now();
    const size_t seeds = n_inputs;
    do {
        for (int i = 0; i < 1000; i++) {
            mutate();
            execute();
            if (anything_new)
                keep_current();
        }
    } while (executions < runs || now() - start < seconds);
    printf("%" PRIu64 " executions in %.0f s, %zu of them reached new code, none failed\n",
           executions, now() - start, n_inputs - seeds);
}

int main(int argc, char **argv)
{
    double seconds = 0;
    uint64_t runs = 0;
    uint64_t seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds = strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--runs") == 0 && i + 1 < argc)
            runs = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 10);
    }
    random_state = seed * 2 + 1; /* never 0 */
    __sanitizer_set_death_callback(leave_crash);
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-')
            i++;
        else
            run_path(argv[i]);
    }
    if (n_inputs == 0) {
        fprintf(stderr, "%s: no input: expected files, or folders of .bin files\n", argv[0]);
        return 2;
    }
    if (seconds > 0 || runs > 0) {
        printf("--seed %" PRIu64 "\n", seed);
        fflush(stdout);
        fuzz(seconds, runs);
    } else {
        printf("%" PRIu64 " files run\n", executions);
    }
    return 0;
}
