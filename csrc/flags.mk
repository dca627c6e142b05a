# Compiler flags that several builds share. csrc/engine.mk and csrc/tests.mk include this file;
# csrc/CMakeLists.txt and src/mnist_mamba/c_build.py parse it, so each line is `NAME := flags`.

WARNINGS := -Wall -Wextra -Wpedantic -Wconversion -Wshadow

# Correctness of floating point: these flags decide the bits of a result.
# -ffp-contract=off: a * b + c rounds twice, whatever the compiler and the processor; kernels that
#   want a fused multiply-add ask for it. -ffp-contract=fast allows it, which -std=c11 forbids.
# -fno-math-errno: sqrtf is one instruction; nothing reads errno.
# -fno-trapping-math: nothing reads the floating-point exception flags.
# Never -ffast-math: it reorders sums and drops checks for NaN and infinity.
ENGINE_MATH := -ffp-contract=off -fno-math-errno
SCAN_MATH := -ffp-contract=fast -fno-math-errno -fno-trapping-math

# Instruction sets of x86-64, for sources that run only after a check of the processor.
ISA_avx2 := -mavx2 -mfma
ISA_avx512 := -mavx512f -mavx512dq -mfma
