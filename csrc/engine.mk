# The C engine. csrc/tests.mk includes this, and the root Makefile that; alone: `make -f csrc/engine.mk TARGET` from the root.
#
#   engine      ./mamba, one thread (the default)     omp    ./mamba with OpenMP over images
#   debug       ./mamba with ASan and UBSan           fast   ./mamba for this very machine; no release
#   dvc-engine  OUT/mamba and OUT/libmamba.so, with OpenMP and fixed flags (OUT=build/dvc)
#
# Each variant has its own build/VARIANT/ with its objects, mamba and libmamba.so; a changed compiler
# or flag rebuilds it. CC and CFLAGS (optimisation and debug flags of engine and omp) can be set, BUILD for
# another folder than build/; V=1 shows the commands. csrc/tests.mk has the tests.

engine:

# Of the kernels that run behind a check of the processor.
ISA_avx2 := -mavx2 -mfma
ISA_avx512 := -mavx512f -mavx512dq -mfma

IS_GCC := $(filter 0,$(shell $(CC) --version 2>/dev/null | grep -ci clang))

# Small, but for the loops in which the time goes; who sets CFLAGS gets those for everything.
ifeq ($(origin CFLAGS),undefined)
CFLAGS := -Os
ENGINE_HOT := -O2
ENGINE_SCALAR := -O3
ifneq ($(IS_GCC),) # gcc's, all as fast or faster, and smaller
ENGINE_AVX512 := -fno-ivopts # loops count what is written, not a pointer for each array
ENGINE_AVX2 := -fno-tree-pre -fno-tree-dominator-opts # no partial redundancy elimination, no jump threading
# No copies of functions for single values of arguments, nor of loops for conditions and paths.
ENGINE_SCALAR += -fno-ipa-cp-clone -fno-unswitch-loops -fno-split-paths
endif
endif
ENGINE_QUIET := $(if $(V),,@)
BUILD := build
OUT ?= $(BUILD)/dvc
# Of the processor that is compiled for, which need not be this one.
ENGINE_TARGET := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))

# What correctness rests on; CFLAGS cannot take it away.
# -ffp-contract=off: a * b + c rounds twice everywhere, so that results do not hang on whether a
#   compiler felt like fusing; kernels that want the fused operation ask for it.
# -fno-math-errno: sqrtf is one instruction; nobody reads errno. NOT -ffast-math: it reorders sums and
#   drops NaN checks.
# No unwind tables: nothing here is unwound. noseparate-code: segments need not begin on a page each.
# -fPIC, hidden visibility: the same objects make the command and the library, which exports its API only.
# -fno-plt: calls of libc read the address themselves instead of jumping to a stub that does: smaller.
ENGINE_FLAGS := -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
    -ffp-contract=off -fno-math-errno -fno-asynchronous-unwind-tables -fPIC -fno-plt -fvisibility=hidden \
    -ffunction-sections -fdata-sections -Icsrc/include -Icsrc/engine \
    -Icsrc/simd

SANITIZE := -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
ifneq ($(IS_GCC),)
# gcc 13 moves frames to a heap to find uses after return, and its 13.3 crashed with AVX-512 in correct
# code, most likely because vectors are not aligned there (gcc's bug 110027). gcc 12 does not by itself.
SANITIZE += --param asan-use-after-return=0
endif

# Only debug has assertions: nothing may hang on them.
ENGINE_CFLAGS_plain = $(CFLAGS) -DNDEBUG
ENGINE_CFLAGS_omp = $(CFLAGS) -DNDEBUG -fopenmp
ENGINE_HOT_plain = $(ENGINE_HOT)
ENGINE_HOT_omp = $(ENGINE_HOT)
ENGINE_AVX2_plain = $(ENGINE_AVX2)
ENGINE_AVX2_omp = $(ENGINE_AVX2)
ENGINE_AVX512_plain = $(ENGINE_AVX512)
ENGINE_AVX512_omp = $(ENGINE_AVX512)
ENGINE_SCALAR_plain = $(ENGINE_SCALAR)
ENGINE_SCALAR_omp = $(ENGINE_SCALAR)
ENGINE_CFLAGS_debug = -O0 -g $(SANITIZE)
ENGINE_CFLAGS_fast = -Ofast -march=native -DNDEBUG
ENGINE_CFLAGS_dvc = -O3 -fopenmp -DNDEBUG

ifeq ($(shell uname -s),Linux)
ENGINE_LDFLAGS := -Wl,--gc-sections -Wl,-z,noseparate-code
endif

ENGINE_LIBRARY_SOURCES := $(sort $(wildcard csrc/engine/*.c)) \
    $(sort $(wildcard csrc/engine/kernels/*.c))
ENGINE_COMMAND_SOURCES := $(sort $(wildcard csrc/engine/cli/*.c))

# $(call engine_variant,NAME,FOLDER)
define engine_variant
ENGINE_LIB_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,$$(ENGINE_LIBRARY_SOURCES))
ENGINE_CMD_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,$$(ENGINE_COMMAND_SOURCES))

$(2)/obj/%.o: csrc/%.c $(2)/obj/flags
	@mkdir -p $$(@D)
	@echo '  cc $(1) $$<'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LEVEL) $$(ENGINE_ISA) $$(CPPFLAGS) -MMD -MP -c $$< -o $$@

# Rewritten only when the compiler or the flags differ from the last time.
$(2)/obj/flags: ENGINE_FORCE
	@mkdir -p $$(@D)
	@echo '$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_HOT_$(1)) $$(ENGINE_SCALAR_$(1)) $$(ENGINE_AVX2_$(1)) $$(ENGINE_AVX512_$(1)) $$(CPPFLAGS) $$(ENGINE_LDFLAGS) $$(LDFLAGS)' | cmp -s - $$@ || \
	    echo '$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_HOT_$(1)) $$(ENGINE_SCALAR_$(1)) $$(ENGINE_AVX2_$(1)) $$(ENGINE_AVX512_$(1)) $$(CPPFLAGS) $$(ENGINE_LDFLAGS) $$(LDFLAGS)' > $$@

ifneq ($(filter x86_64 amd64,$(ENGINE_TARGET)),)
$(2)/obj/engine/kernels/avx2.o: ENGINE_ISA := $(ISA_avx2)
$(2)/obj/engine/kernels/avx512.o: ENGINE_ISA := $(ISA_avx512)
endif
$(2)/obj/engine/kernels/%.o: ENGINE_LEVEL = $$(ENGINE_HOT_$(1))
$(2)/obj/engine/kernels/avx2.o: ENGINE_LEVEL = $$(ENGINE_HOT_$(1)) $$(ENGINE_AVX2_$(1))
$(2)/obj/engine/kernels/avx512.o: ENGINE_LEVEL = $$(ENGINE_HOT_$(1)) $$(ENGINE_AVX512_$(1))
$(2)/obj/engine/kernels/scalar.o: ENGINE_LEVEL = $$(ENGINE_SCALAR_$(1))

$(2)/mamba: $$(ENGINE_LIB_$(1)) $$(ENGINE_CMD_$(1))
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LDFLAGS) $$(LDFLAGS) $$^ -lm -o $$@.tmp && mv -f $$@.tmp $$@

$(2)/libmamba.so: $$(ENGINE_LIB_$(1))
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LDFLAGS) $$(LDFLAGS) -shared $$^ -lm -o $$@.tmp && mv -f $$@.tmp $$@

.PRECIOUS: $(2)/obj/%.o
-include $$(shell find $(2)/obj -name '*.d' 2>/dev/null)
endef

$(foreach variant,plain omp debug fast,$(eval $(call engine_variant,$(variant),$(BUILD)/$(variant))))
$(eval $(call engine_variant,dvc,$(OUT)))

# $(call engine_install,FOLDER): ./mamba changes in one step, also while another one runs.
engine_install = cp $(1)/mamba .mamba.$@.tmp && mv -f .mamba.$@.tmp mamba

##@ Engine

.PHONY: engine omp debug fast dvc-engine engine-clean ENGINE_FORCE
engine: $(BUILD)/plain/mamba $(BUILD)/plain/libmamba.so ## build ./mamba and libmamba.so, one thread
	@$(call engine_install,$(BUILD)/plain)

omp: $(BUILD)/omp/mamba $(BUILD)/omp/libmamba.so ## build them with OpenMP over the images of a batch
	@$(call engine_install,$(BUILD)/omp)

debug: $(BUILD)/debug/mamba $(BUILD)/debug/libmamba.so ## build them with AddressSanitizer and UndefinedBehaviorSanitizer
	@$(call engine_install,$(BUILD)/debug)

fast: $(BUILD)/fast/mamba $(BUILD)/fast/libmamba.so ## build them with -Ofast for this very machine; not for releases
	@$(call engine_install,$(BUILD)/fast)
	@echo "./mamba was built with -Ofast -march=native: for curiosity, not for tests or releases"

dvc-engine: $(OUT)/mamba $(OUT)/libmamba.so

engine-clean:
	rm -rf $(addprefix $(BUILD)/,plain omp debug fast dvc) mamba
