/* A test is a sequence of CHECKs. main ends with `return check_summary();`. */
#ifndef MAMBA_TESTS_CHECK_H
#define MAMBA_TESTS_CHECK_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

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

static int check_summary(void)
{
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed || !checks_passed ? 1 : 0;
}

#endif
