/* Machine limits for `make bench-engine`, compiled for the machine's best instruction set:
 *
 *     machine fma          print one core's GFLOP/s of fused multiply-adds on registers
 *     machine exp2         print nanoseconds per exponential, as the kernels compute it
 *     machine rss COMMAND  run a command and print its peak resident memory (KiB) on stderr
 */
#define _GNU_SOURCE
#include "vector_math.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHAINS = 12, CALLS = 200, STEPS = 20000 };

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* CHAINS independent sums hide the latency of multiply-adds on two ports. */
static float run_fma(void)
{
    vreal sum[CHAINS];
    float lanes[LANES];
    const vreal factor = v_set1(0.5f), one = v_set1(1);
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++)
        sum[i] = v_set1((float)i);
    for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sum[i] = v_fma(sum[i], factor, one);
    }
#pragma GCC unroll 12
    for (int i = 1; i < CHAINS; i++)
        sum[0] = sum[0] + sum[i];
    v_store(lanes, sum[0]);
    return lanes[0];
}

static float run_exp2(void)
{
    vreal x[MAX_TOGETHER];
    float lanes[LANES];
    vreal sum = v_set1(0);
    for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 4
        for (int i = 0; i < MAX_TOGETHER; i++)
            x[i] = v_set1(-1e-4f * (float)(step + i));
        v_exp2_up_to(x, MAX_TOGETHER, EXP2_FINITE);
#pragma GCC unroll 4
        for (int i = 0; i < MAX_TOGETHER; i++)
            sum = sum + x[i];
    }
    v_store(lanes, sum);
    return lanes[0];
}

/* Seconds of the fastest of many calls: the one that nothing else disturbed. */
static double fastest_s(float (*run)(void))
{
    static volatile float sink;
    double fastest = 1e9;
    for (int call = 0; call < CALLS; call++) {
        const double start = now_s();
        sink = run();
        const double seconds = now_s() - start;
        fastest = seconds < fastest ? seconds : fastest;
    }
    (void)sink;
    return fastest;
}

/* A child's peak starts at its parent's, so the parent must be this small program. */
static int report_rss(char **command)
{
    struct rusage usage;
    int status = 1;
    const pid_t child = fork();
    if (child == 0) {
        execv(command[0], command);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) < 0 || status != 0)
        return 1;
    fprintf(stderr, "%ld\n", usage.ru_maxrss);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "fma") == 0)
        printf("%.2f\n", 2e-9 * (double)(CHAINS * LANES * STEPS) / fastest_s(run_fma));
    else if (argc == 2 && strcmp(argv[1], "exp2") == 0)
        printf("%.5f\n", 1e9 * fastest_s(run_exp2) / (double)(STEPS * MAX_TOGETHER * LANES));
    else if (argc > 2 && strcmp(argv[1], "rss") == 0)
        return report_rss(argv + 2);
    else
        return 2;
    return 0;
}
