/* A test is a sequence of CHECKs. main ends with `return check_summary();`. */
#ifndef MAMBA_TESTS_CHECK_H
#define MAMBA_TESTS_CHECK_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int checks_passed, checks_failed;

/* CHECK(condition, "what was got", ...) prints a failure and goes on; returns the condition. */
#define CHECK(condition, ...) check_that((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)

__attribute__((format(printf, 5, 6))) static bool
check_that(bool ok, const char *file, int line, const char *condition, const char *format, ...)
{
    if (ok) {
        checks_passed++;
        return true;
    }
    checks_failed++;
    printf("%s:%d: failed: %s: ", file, line, condition);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    return false;
}

/* Whether a test that repeats itself with other random numbers does so less often: csrc/tests.mk
 * asks for it under valgrind and qemu, where a test takes 10 to 100 times as long, and where only
 * the parallel loop is another. Each kind of case is tried all the same. */
static inline bool only_a_sample(void)
{
    return getenv("CHECK_SAMPLE") != NULL;
}

static int check_summary(void)
{
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed || !checks_passed ? 1 : 0;
}

#endif
