# The build of the C engine. csrc/tests.mk includes this file, and the root Makefile includes that.
# On its own: `make -f csrc/engine.mk TARGET` from the root of the repository.
#
#   engine      ./mamba, one thread (the default)     omp    ./mamba with OpenMP over images
#   debug       ./mamba with ASan and UBSan           fast   ./mamba for this machine only
#   dvc-engine  OUT/mamba and OUT/libmamba.so, with OpenMP and fixed flags (OUT=build/dvc)
#
# Each variant has its own folder build/VARIANT/ with its objects, mamba and libmamba.so, and is
# rebuilt when the compiler or a flag changes.
#
# Variables that can be set: CC, CFLAGS (optimisation and debugging of engine and omp), CPPFLAGS,
# LDFLAGS, BUILD (another folder than build/), V=1 (show the commands), WERROR=1 (warnings are
# errors; CI sets it, and debug is always built so).

engine:

include csrc/flags.mk

ENGINE_QUIET := $(if $(V),,@)
BUILD := build
OUT ?= $(BUILD)/dvc
ifeq ($(strip $(CC)),)
override CC := cc
endif

# ---- sources: every .c of csrc/engine is the library, every .c of csrc/engine/cli the command ----

ENGINE_LIBRARY_SOURCES := $(sort $(wildcard csrc/engine/*.c)) \
    $(sort $(wildcard csrc/engine/kernels/*.c))
ENGINE_COMMAND_SOURCES := $(sort $(wildcard csrc/engine/cli/*.c))

# ---- the compiler ----

COMPILER := $(shell $(CC) --version 2>/dev/null | head -n 1)
IS_GCC := $(if $(findstring clang,$(COMPILER)),,gcc)
# The processor that CC compiles for, which need not be this one's.
ENGINE_TARGET := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
IS_X86 := $(filter x86_64 amd64,$(ENGINE_TARGET))

# $(call try,FLAGS): the FLAGS with which CC builds an empty program without a warning: all at once,
# else each one that works alone. $(BUILD)/tried remembers the answer, unless CC builds nothing.
try = $(shell mkdir -p $(BUILD)/tried; \
    known=$(BUILD)/tried/$$(echo '$(CC) $(COMPILER) $(LDFLAGS) $(1)' | cksum | tr ' ' -); \
    new=$$known.$$$$; \
    builds() { echo 'int main(void) { return 0; }' | \
        $(CC) $(LDFLAGS) -Werror "$$@" -x c - -o $$new.out >/dev/null 2>&1; }; \
    if [ ! -e $$known ] && builds; then \
        if builds $(1); then echo '$(1)'; \
        else for flag in $(1); do if builds $$flag; then echo $$flag; fi; done; fi > $$new; \
        mv -f $$new $$known; fi; \
    rm -f $$new.out*; cat $$known 2>/dev/null)

# ---- flags of every variant ----

# -fno-asynchronous-unwind-tables, -Wl,--no-eh-frame-hdr, -Wl,--no-ld-generated-unwind-info:
#   nothing here is unwound.
# -fPIC -fvisibility=hidden: the same objects make the command and the library, which exports only
#   its API.
# -fno-plt: calls of libc load the address instead of jumping to a stub, which is smaller.
# -Wl,-z,noseparate-code: segments need not begin on a page each.
ENGINE_SMALL := -fno-asynchronous-unwind-tables -fPIC -fno-plt -fvisibility=hidden \
    -ffunction-sections -fdata-sections
ENGINE_LINK_SMALL := -Wl,--gc-sections -Wl,-z,noseparate-code -Wl,--no-eh-frame-hdr \
    -Wl,--no-ld-generated-unwind-info
ENGINE_FLAGS := -std=c11 $(WARNINGS) $(if $(WERROR),-Werror) $(ENGINE_MATH) \
    $(call try,$(ENGINE_SMALL)) -DMAMBA_DLL_EXPORT -Icsrc/include -Icsrc/engine -Icsrc/simd
ENGINE_LDFLAGS := $(call try,$(ENGINE_LINK_SMALL))

# ---- flags of single variants ----

# To find uses after return, gcc 13 moves stack frames to the heap. gcc 13.3 then crashed with
# AVX-512 in correct code, most likely because vectors are not aligned there (gcc's bug 110027).
SANITIZE := -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    $(call try,--param=asan-use-after-return=0)

# engine and omp: small, except for the kernels, which are tuned below. CFLAGS replaces all of it.
# gcc alone has most of the flags that are tried here.
ifeq ($(origin CFLAGS),undefined)
# No new signatures for internal functions: smaller, except in the kernels. Tables need no 32 bytes
# of alignment.
CFLAGS := -Os $(call try,-fno-ipa-sra -malign-data=abi)
ENGINE_HOT := -O2 $(call try,-fipa-sra)
# Smaller, and as fast or faster: no partial redundancies, no jump threading; loops count what is
# written, not one pointer per array.
ENGINE_AVX2 := $(call try,-fno-tree-pre -fno-tree-dominator-opts)
ENGINE_AVX512 := $(call try,-fno-ivopts)
# No copies of functions for constant arguments or callers, nor of loops for conditions and paths.
ENGINE_SCALAR := -O3 $(call try,-fno-ipa-cp-clone -fno-inline-functions -fno-unswitch-loops \
    -fno-split-paths)
ENGINE_PICTURE := -O3 $(call try,-fno-unswitch-loops)
endif

# Only debug has assertions: no behaviour may depend on them.
ENGINE_CFLAGS_plain = $(CFLAGS) -DNDEBUG
ENGINE_CFLAGS_omp = $(CFLAGS) -DNDEBUG -fopenmp
ENGINE_CFLAGS_debug = -O0 -g -Werror $(SANITIZE)
ENGINE_CFLAGS_fast = -Ofast -march=native -DNDEBUG
ENGINE_CFLAGS_dvc = -O3 -fopenmp -DNDEBUG

# ---- flags of single sources, which override those of their variant ----

TUNE_avx2 = $(ENGINE_HOT) $(ENGINE_AVX2)
TUNE_avx512 = $(ENGINE_HOT) $(ENGINE_AVX512)
TUNE_dispatch = $(ENGINE_HOT)
TUNE_neon = $(ENGINE_HOT)
TUNE_scalar = $(ENGINE_SCALAR)
TUNE_picture = $(ENGINE_PICTURE)
TUNE_digit = $(ENGINE_PICTURE)

# $(call engine_source_flags,VARIANT,SOURCE): e.g. TUNE_avx2 and ISA_avx2 for kernels/avx2.c.
engine_kernel = $(basename $(notdir $(1)))
engine_source_flags = $(if $(filter plain omp,$(1)),$(TUNE_$(call engine_kernel,$(2)))) \
    $(if $(IS_X86),$(ISA_$(call engine_kernel,$(2))))

# ---- rules ----

# $(call engine_objects,FOLDER,SOURCES)
engine_objects = $(patsubst csrc/%.c,$(1)/obj/%.o,$(2))
# $(call engine_compile,VARIANT,SOURCE) and $(call engine_link,VARIANT): the start of a command.
engine_compile = $(CC) $(ENGINE_FLAGS) $(ENGINE_CFLAGS_$(1)) \
    $(call engine_source_flags,$(1),$(2)) $(CPPFLAGS)
engine_link = $(CC) $(ENGINE_CFLAGS_$(1)) $(ENGINE_LDFLAGS) $(LDFLAGS)
# $(call engine_commands,VARIANT): compiler and flags of all sources, to detect a change of either.
engine_commands = $(foreach source,$(ENGINE_LIBRARY_SOURCES),$(call engine_compile,$(1),$(source))) \
    $(call engine_link,$(1))

# $(eval $(call engine_variant,VARIANT,FOLDER)): the rules of one variant.
define engine_variant
$(2)/obj/%.o: csrc/%.c $(2)/obj/flags
	@mkdir -p $$(@D)
	@echo '  cc $(1) $$<'
	$$(ENGINE_QUIET)$$(call engine_compile,$(1),$$<) -MMD -MP -c $$< -o $$@

# Rewritten only if the compiler or a flag is not what it was.
$(2)/obj/flags: ENGINE_FORCE
	@mkdir -p $$(@D)
	@echo '$$(call engine_commands,$(1))' > $$@.new
	@cmp -s $$@.new $$@ && rm $$@.new || mv $$@.new $$@

$(2)/mamba: $$(call engine_objects,$(2),$$(ENGINE_LIBRARY_SOURCES) $$(ENGINE_COMMAND_SOURCES))
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(call engine_link,$(1)) $$^ -lm -o $$@.tmp && mv -f $$@.tmp $$@

$(2)/libmamba.so: $$(call engine_objects,$(2),$$(ENGINE_LIBRARY_SOURCES))
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(call engine_link,$(1)) -shared $$^ -lm -o $$@.tmp && mv -f $$@.tmp $$@

.PRECIOUS: $(2)/obj/%.o
-include $$(shell find $(2)/obj -name '*.d' 2>/dev/null)
endef

$(foreach variant,plain omp debug fast,$(eval $(call engine_variant,$(variant),$(BUILD)/$(variant))))
$(eval $(call engine_variant,dvc,$(OUT)))

# $(call engine_install,FOLDER): replace ./mamba in one step, which does not disturb a running one.
engine_install = cp $(1)/mamba .mamba.$@.tmp && mv -f .mamba.$@.tmp mamba

##@ Engine

.PHONY: engine omp debug fast dvc-engine engine-clean ENGINE_FORCE
engine: $(BUILD)/plain/mamba $(BUILD)/plain/libmamba.so ## build ./mamba, one thread
	@$(call engine_install,$(BUILD)/plain)

omp: $(BUILD)/omp/mamba $(BUILD)/omp/libmamba.so ## build ./mamba, OpenMP over images
	@$(call engine_install,$(BUILD)/omp)

debug: $(BUILD)/debug/mamba $(BUILD)/debug/libmamba.so ## build ./mamba with ASan and UBSan
	@$(call engine_install,$(BUILD)/debug)

fast: $(BUILD)/fast/mamba $(BUILD)/fast/libmamba.so ## build ./mamba for this machine only
	@$(call engine_install,$(BUILD)/fast)
	@echo "./mamba was built with -Ofast -march=native: not tested, not for releases"

dvc-engine: $(OUT)/mamba $(OUT)/libmamba.so

engine-clean:
	rm -rf $(addprefix $(BUILD)/,plain omp debug fast dvc) mamba
