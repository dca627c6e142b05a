/* The part of the C library that the engine needs: memory, strings, printf. math.c has the rest.
 *
 * JavaScript gives each model an instance of its own, and drops the instance with its memory. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory: taken from the end, never given back -------------------------------------------- */

extern unsigned char __heap_base; /* the linker's: the first byte after data and stack */

enum { PAGE = 65536 };

/* Returns `bytes` of memory aligned for any type and any vector; NULL if there is none. New pages
 * are zeros. */
void *malloc(size_t bytes)
{
    static uint64_t used; /* 64 bits: no sum overflows */
    if (used == 0)
        used = (uint64_t)(uintptr_t)&__heap_base;
    const uint64_t start = (used + 63) / 64 * 64, end = start + bytes;
    const uint64_t pages = (end + PAGE - 1) / PAGE, have = __builtin_wasm_memory_size(0);
    if (pages > PAGE ||
        (pages > have && __builtin_wasm_memory_grow(0, (size_t)(pages - have)) == SIZE_MAX))
        return NULL;
    used = end;
    return (void *)(uintptr_t)start;
}

/* No memory is used twice, so all of it is zeros. */
void *calloc(size_t n, size_t bytes)
{
    return n > 0 && bytes > SIZE_MAX / n ? NULL : malloc(n * bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    return alignment <= 64 ? malloc(bytes) : NULL;
}

void free(void *memory)
{
    (void)memory;
}

/* ---- strings --------------------------------------------------------------------------------- */

void *memchr(const void *bytes, int byte, size_t n)
{
    for (const unsigned char *p = bytes; n > 0; n--, p++)
        if (*p == (unsigned char)byte)
            return (void *)(uintptr_t)p;
    return NULL;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *p = a, *q = b;
    for (; n > 0; n--, p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (unsigned char)*a - (unsigned char)*b;
}

size_t strcspn(const char *text, const char *stop)
{
    size_t n = 0;
    for (; text[n]; n++)
        for (const char *s = stop; *s; s++)
            if (text[n] == *s)
                return n;
    return n;
}

size_t strlen(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

/* ---- printf: %s %d %u %X %g, the sizes z and ll, a precision, and the width of %0nX ---------- */

/* Writes a number as %.*g does, without a NUL, and returns its length. JavaScript does it. */
__attribute__((import_module("env"), import_name("format_number"))) extern size_t
format_number(char *out, double value, int digits);

struct text {
    char *out;
    size_t size, length;
};

static void put(struct text *text, const char *from, size_t n)
{
    for (; n > 0; n--, from++, text->length++)
        if (text->length + 1 < text->size)
            text->out[text->length] = *from;
}

static void put_integer(struct text *text, uint64_t value, unsigned base, size_t width)
{
    char digits[20];
    size_t at = sizeof digits;
    do
        digits[--at] = "0123456789ABCDEF"[value % base];
    while ((value /= base) > 0);
    while (sizeof digits - at < width)
        digits[--at] = '0';
    put(text, digits + at, sizeof digits - at);
}

/* Returns the number at *format, and steps over it. */
static size_t read_number(const char **format)
{
    size_t n = 0;
    for (; **format >= '0' && **format <= '9'; ++*format)
        n = 10 * n + (size_t)(**format - '0');
    return n;
}

/* One conversion, which starts after its '%'. Returns its end. */
static const char *convert(struct text *text, const char *format, va_list *arguments)
{
    const size_t width = read_number(&format);
    size_t precision = SIZE_MAX;
    bool is_long = false;
    if (*format == '.') {
        format++;
        if (*format == '*') {
            precision = (size_t)va_arg(*arguments, int);
            format++;
        } else {
            precision = read_number(&format);
        }
    }
    for (; *format == 'z' || *format == 'l'; format++)
        is_long = format[0] == 'l' && format[-1] == 'l';
    if (*format == 's') {
        const char *string = va_arg(*arguments, const char *);
        size_t n = 0;
        while (n < precision && string[n])
            n++;
        put(text, string, n);
    } else if (*format == 'g') {
        char number[32];
        const double value = va_arg(*arguments, double);
        if (value != value && __builtin_signbit(value)) /* JavaScript knows one NaN */
            put(text, "-", 1);
        put(text, number, format_number(number, value, precision == SIZE_MAX ? 6 : (int)precision));
    } else {
        uint64_t value = is_long ? va_arg(*arguments, uint64_t) : va_arg(*arguments, uint32_t);
        if (*format == 'd' && (int32_t)value < 0) {
            put(text, "-", 1);
            value = -(uint64_t)(int32_t)value;
        }
        put_integer(text, value, *format == 'X' ? 16 : 10, width);
    }
    return format + 1;
}

int vsnprintf(char *out, size_t size, const char *format, va_list arguments)
{
    struct text text = {out, size, 0};
    va_list rest;
    va_copy(rest, arguments);
    while (*format)
        if (*format == '%')
            format = convert(&text, format + 1, &rest);
        else
            put(&text, format++, 1);
    va_end(rest);
    if (size > 0)
        out[text.length < size ? text.length : size - 1] = 0;
    return (int)text.length;
}

int snprintf(char *out, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(out, size, format, arguments);
    va_end(arguments);
    return length;
}
