# The C engine. The root Makefile includes this; alone: `make -f csrc/engine.mk TARGET` from the root.
#
#   engine      ./mamba, one thread (the default)     omp    ./mamba with OpenMP over images
#   debug       ./mamba with ASan and UBSan           fast   ./mamba for this very machine; no release
#   test-c      the C tests: plain, OpenMP, sanitizers
#   dvc-engine  OUT/mamba and OUT/libmamba.so, with OpenMP and fixed flags (OUT=build/dvc)
#
# Each variant has its own build/VARIANT/ with its objects, mamba and libmamba.so; a changed compiler
# or flag rebuilds it. CC and CFLAGS (optimisation and debug flags of engine and omp) can be set; V=1
# shows the commands.

engine:

# Of the kernels that run behind a check of the processor.
ISA_avx2 := -mavx2 -mfma
ISA_avx512 := -mavx512f -mavx512dq -mfma

# Small, but for the loops in which the time goes; who sets CFLAGS gets those for everything.
ifeq ($(origin CFLAGS),undefined)
CFLAGS := -Os
ENGINE_HOT := -O2
ENGINE_SCALAR := -O3
ifeq ($(shell $(CC) --version 2>/dev/null | grep -ci clang),0)
ENGINE_SCALAR += -fno-ipa-cp-clone # no copies of functions for single values of arguments; gcc's
endif
endif
ENGINE_QUIET := $(if $(V),,@)
OUT ?= build/dvc

# What correctness rests on; CFLAGS cannot take it away.
# -ffp-contract=off: a * b + c rounds twice everywhere, so that results do not hang on whether a
#   compiler felt like fusing; kernels that want the fused operation ask for it.
# -fno-math-errno: sqrtf is one instruction; nobody reads errno. NOT -ffast-math: it reorders sums and
#   drops NaN checks.
# No unwind tables: nothing here is unwound. noseparate-code: segments need not begin on a page each.
# -fPIC, hidden visibility: the same objects make the command and the library, which exports its API only.
ENGINE_FLAGS := -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
    -ffp-contract=off -fno-math-errno -fno-asynchronous-unwind-tables -fPIC -fvisibility=hidden \
    -ffunction-sections -fdata-sections -Icsrc/include -Icsrc/engine \
    -Icsrc/simd

ENGINE_CFLAGS_plain = $(CFLAGS)
ENGINE_CFLAGS_omp = $(CFLAGS) -fopenmp
ENGINE_HOT_plain = $(ENGINE_HOT)
ENGINE_HOT_omp = $(ENGINE_HOT)
ENGINE_SCALAR_plain = $(ENGINE_SCALAR)
ENGINE_SCALAR_omp = $(ENGINE_SCALAR)
ENGINE_CFLAGS_debug = -O0 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
    -fno-sanitize-recover=all
ENGINE_CFLAGS_fast = -Ofast -march=native
ENGINE_CFLAGS_dvc = -O3 -fopenmp

ifeq ($(shell uname -s),Linux)
ENGINE_LDFLAGS := -Wl,--gc-sections -Wl,-z,noseparate-code
endif

ENGINE_LIBRARY_SOURCES := $(filter-out csrc/engine/idx.c,$(sort $(wildcard csrc/engine/*.c))) \
    $(sort $(wildcard csrc/engine/kernels/*.c))
ENGINE_COMMAND_SOURCES := csrc/engine/idx.c $(sort $(wildcard csrc/engine/cli/*.c))
ENGINE_TESTS := test_allocation test_kernels test_model test_idx test_forward test_golden
ENGINE_TEST_SUPPORT := csrc/tests/tiny_model.c

# $(call engine_variant,NAME,FOLDER)
define engine_variant
ENGINE_LIB_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,$$(ENGINE_LIBRARY_SOURCES))
ENGINE_CMD_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,$$(ENGINE_COMMAND_SOURCES))
ENGINE_SUPPORT_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,csrc/engine/idx.c $$(ENGINE_TEST_SUPPORT))

$(2)/obj/%.o: csrc/%.c $(2)/obj/flags
	@mkdir -p $$(@D)
	@echo '  cc $(1) $$<'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LEVEL) $$(ENGINE_ISA) $$(CPPFLAGS) -MMD -MP -c $$< -o $$@

# Rewritten only when the compiler or the flags differ from the last time.
$(2)/obj/flags: ENGINE_FORCE
	@mkdir -p $$(@D)
	@echo '$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(CPPFLAGS) $$(LDFLAGS)' | cmp -s - $$@ || \
	    echo '$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(CPPFLAGS) $$(LDFLAGS)' > $$@

ifneq ($(filter x86_64 amd64,$(shell uname -m)),)
$(2)/obj/engine/kernels/avx2.o: ENGINE_ISA := $(ISA_avx2)
$(2)/obj/engine/kernels/avx512.o: ENGINE_ISA := $(ISA_avx512)
endif
$(2)/obj/engine/forward.o $(2)/obj/engine/kernels/%.o: ENGINE_LEVEL = $$(ENGINE_HOT_$(1))
$(2)/obj/engine/kernels/scalar.o: ENGINE_LEVEL = $$(ENGINE_SCALAR_$(1))

$(2)/mamba: $$(ENGINE_LIB_$(1)) $$(ENGINE_CMD_$(1))
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LDFLAGS) $$(LDFLAGS) $$^ -lm -o $$@.tmp && mv -f $$@.tmp $$@

$(2)/libmamba.so: $$(ENGINE_LIB_$(1))
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LDFLAGS) $$(LDFLAGS) -shared $$^ -lm -o $$@.tmp && mv -f $$@.tmp $$@

$(2)/tests/%: $(2)/obj/tests/%.o $$(ENGINE_LIB_$(1)) $$(ENGINE_SUPPORT_$(1))
	@mkdir -p $$(@D)
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LDFLAGS) $$(LDFLAGS) $$^ -lm -o $$@

.PHONY: test-c-$(1)
test-c-$(1): $$(addprefix $(2)/tests/,$$(ENGINE_TESTS)) $(2)/mamba
	@for test in $$(addprefix $(2)/tests/,$$(ENGINE_TESTS)); do \
	    echo "== $$$$test"; $$$$test || exit 1; done
	@echo "== csrc/tests/test_cli.sh ($(1))"
	@sh csrc/tests/test_cli.sh $(2)/mamba

.PRECIOUS: $(2)/obj/%.o
-include $$(shell find $(2)/obj -name '*.d' 2>/dev/null)
endef

$(foreach variant,plain omp debug fast,$(eval $(call engine_variant,$(variant),build/$(variant))))
$(eval $(call engine_variant,dvc,$(OUT)))

# $(call engine_install,FOLDER): ./mamba changes in one step, also while another one runs.
engine_install = cp $(1)/mamba .mamba.$@.tmp && mv -f .mamba.$@.tmp mamba

# The training kernels, which Python builds for itself (src/mnist_mamba/scan/kernel.py, whose flags
# these are); here for their tests, with OpenMP and with sanitizers.
SCAN_FLAGS := -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -Icsrc/scan -Icsrc/simd \
    -ffp-contract=fast -fno-math-errno -fno-trapping-math
SCAN_CFLAGS_omp := -O3 -fopenmp
SCAN_CFLAGS_debug := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
    -fno-sanitize-recover=all
SCAN_TESTS := test_scan test_block
SCAN_TEST_SUPPORT := $(addprefix csrc/tests/,exact_block.c exact_scan.c random_tensors.c)
SCAN_OBJECTS := $(patsubst csrc/scan/%.c,%.o,$(sort $(wildcard csrc/scan/*.c)))
ifneq ($(filter x86_64 amd64,$(shell uname -m)),)
build/scan-%/kernel_avx2.o: SCAN_ISA := $(ISA_avx2)
build/scan-%/kernel_avx512.o: SCAN_ISA := $(ISA_avx512)
endif

# $(call scan_variant,NAME)
define scan_variant
build/scan-$(1)/%.o: csrc/scan/%.c $$(wildcard csrc/scan/*.h csrc/scan/*.inc csrc/simd/*.h) csrc/engine.mk
	@mkdir -p $$(@D)
	@echo '  cc scan-$(1) $$<'
	$$(ENGINE_QUIET)$$(CC) $$(SCAN_FLAGS) $$(SCAN_CFLAGS_$(1)) $$(SCAN_ISA) -c $$< -o $$@

$$(addprefix build/scan-$(1)/,$$(SCAN_TESTS)): build/scan-$(1)/%: csrc/tests/%.c \
    $$(SCAN_TEST_SUPPORT) $$(addprefix build/scan-$(1)/,$$(SCAN_OBJECTS)) $$(wildcard csrc/tests/*.h)
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(SCAN_FLAGS) $$(SCAN_CFLAGS_$(1)) $$(filter %.c %.o,$$^) -lm -o $$@

.PHONY: test-scan-$(1)
test-scan-$(1): $$(addprefix build/scan-$(1)/,$$(SCAN_TESTS))
	@for test in $$^; do echo "== $$$$test"; $$$$test || exit 1; done
endef
$(foreach variant,omp debug,$(eval $(call scan_variant,$(variant))))

.PHONY: engine omp debug fast dvc-engine test-c test-c-scalar engine-clean ENGINE_FORCE
engine: build/plain/mamba build/plain/libmamba.so ## ./mamba, one thread
	@$(call engine_install,build/plain)

omp: build/omp/mamba build/omp/libmamba.so ## ./mamba with OpenMP over the images of a batch
	@$(call engine_install,build/omp)

debug: build/debug/mamba build/debug/libmamba.so ## ./mamba with AddressSanitizer and UndefinedBehaviorSanitizer
	@$(call engine_install,build/debug)

fast: build/fast/mamba build/fast/libmamba.so ## ./mamba with -Ofast for this very machine; not for releases
	@$(call engine_install,build/fast)
	@echo "./mamba was built with -Ofast -march=native: for curiosity, not for tests or releases"

dvc-engine: $(OUT)/mamba $(OUT)/libmamba.so

# The oracle itself, which no machine with vectors would take.
test-c-scalar: build/plain/tests/test_forward build/plain/tests/test_golden
	@for test in $^; do echo "== $$test (scalar)"; MAMBA_ISA=scalar $$test || exit 1; done

test-c: test-c-plain test-c-scalar test-c-omp test-c-debug test-scan-omp test-scan-debug ## the C tests: plain, OpenMP, sanitizers

engine-clean:
	rm -rf build/plain build/omp build/debug build/fast build/dvc build/scan-omp build/scan-debug mamba
