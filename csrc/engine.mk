# The C engine. The root Makefile includes this; alone: `make -f csrc/engine.mk TARGET` from the root.
#
#   engine      ./mamba, one thread (the default)     omp    ./mamba with OpenMP over images
#   debug       ./mamba with ASan and UBSan           fast   ./mamba for this very machine; no release
#   test-c      the C tests: plain, OpenMP, sanitizers
#   test-cross  the C tests for other processors, run by qemu-user; test-valgrind: under valgrind
#   fuzz        SECONDS of random bytes for each reader of files
#   dvc-engine  OUT/mamba and OUT/libmamba.so, with OpenMP and fixed flags (OUT=build/dvc)
#
# Each variant has its own build/VARIANT/ with its objects, mamba and libmamba.so; a changed compiler
# or flag rebuilds it. CC and CFLAGS (optimisation and debug flags of engine and omp) can be set, BUILD for
# another folder than build/, RUN for a program that runs the tests (qemu, valgrind); V=1 shows the
# commands.

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
BUILD := build
OUT ?= $(BUILD)/dvc
RUN :=
# Of the processor that is compiled for, which need not be this one.
ENGINE_TARGET := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))

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

# Only debug has assertions: nothing may hang on them.
ENGINE_CFLAGS_plain = $(CFLAGS) -DNDEBUG
ENGINE_CFLAGS_omp = $(CFLAGS) -DNDEBUG -fopenmp
ENGINE_HOT_plain = $(ENGINE_HOT)
ENGINE_HOT_omp = $(ENGINE_HOT)
ENGINE_SCALAR_plain = $(ENGINE_SCALAR)
ENGINE_SCALAR_omp = $(ENGINE_SCALAR)
ENGINE_CFLAGS_debug = -O0 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
    -fno-sanitize-recover=all
ENGINE_CFLAGS_fast = -Ofast -march=native -DNDEBUG
ENGINE_CFLAGS_dvc = -O3 -fopenmp -DNDEBUG
ENGINE_CFLAGS_tsan = -O1 -g -fsanitize=thread
ENGINE_CFLAGS_fuzz = -O2 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
    -fno-sanitize-recover=all -DNDEBUG

ifeq ($(shell uname -s),Linux)
ENGINE_LDFLAGS := -Wl,--gc-sections -Wl,-z,noseparate-code
endif

ENGINE_LIBRARY_SOURCES := $(filter-out csrc/engine/idx.c,$(sort $(wildcard csrc/engine/*.c))) \
    $(sort $(wildcard csrc/engine/kernels/*.c))
ENGINE_COMMAND_SOURCES := csrc/engine/idx.c $(sort $(wildcard csrc/engine/cli/*.c))
ENGINE_TESTS := test_allocation test_kernels test_model test_hostile test_threads test_idx test_forward \
    test_golden
ENGINE_TEST_SUPPORT := $(filter-out csrc/engine/cli/main.c,$(ENGINE_COMMAND_SOURCES)) csrc/tests/tiny_model.c

# $(call engine_variant,NAME,FOLDER)
define engine_variant
ENGINE_LIB_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,$$(ENGINE_LIBRARY_SOURCES))
ENGINE_CMD_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,$$(ENGINE_COMMAND_SOURCES))
ENGINE_SUPPORT_$(1) := $$(patsubst csrc/%.c,$(2)/obj/%.o,$$(ENGINE_TEST_SUPPORT))

$(2)/obj/%.o: csrc/%.c $(2)/obj/flags
	@mkdir -p $$(@D)
	@echo '  cc $(1) $$<'
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LEVEL) $$(ENGINE_ISA) $$(CPPFLAGS) -MMD -MP -c $$< -o $$@

# Rewritten only when the compiler or the flags differ from the last time.
$(2)/obj/flags: ENGINE_FORCE
	@mkdir -p $$(@D)
	@echo '$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(CPPFLAGS) $$(LDFLAGS)' | cmp -s - $$@ || \
	    echo '$$(CC) $$(ENGINE_FLAGS) $$(ENGINE_CFLAGS_$(1)) $$(CPPFLAGS) $$(LDFLAGS)' > $$@

ifneq ($(filter x86_64 amd64,$(ENGINE_TARGET)),)
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
	$$(ENGINE_QUIET)$$(CC) $$(ENGINE_CFLAGS_$(1)) $$(ENGINE_LDFLAGS) $$(LDFLAGS) $$^ -lm -pthread -o $$@

.PHONY: test-c-$(1)
test-c-$(1): $$(addprefix $(2)/tests/,$$(ENGINE_TESTS)) $(2)/mamba
	@for test in $$(addprefix $(2)/tests/,$$(ENGINE_TESTS)); do \
	    echo "== $$$$test"; $(RUN) $$$$test || exit 1; done
	@echo "== csrc/tests/test_cli.sh ($(1))"
	@RUN="$(RUN)" sh csrc/tests/test_cli.sh $(2)/mamba

.PRECIOUS: $(2)/obj/%.o
-include $$(shell find $(2)/obj -name '*.d' 2>/dev/null)
endef

$(foreach variant,plain omp debug fast tsan fuzz,$(eval $(call engine_variant,$(variant),$(BUILD)/$(variant))))
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
ifneq ($(filter x86_64 amd64,$(ENGINE_TARGET)),)
$(BUILD)/scan-%/kernel_avx2.o: SCAN_ISA := $(ISA_avx2)
$(BUILD)/scan-%/kernel_avx512.o: SCAN_ISA := $(ISA_avx512)
endif

# $(call scan_variant,NAME)
define scan_variant
$(BUILD)/scan-$(1)/%.o: csrc/scan/%.c $$(wildcard csrc/scan/*.h csrc/scan/*.inc csrc/simd/*.h) csrc/engine.mk
	@mkdir -p $$(@D)
	@echo '  cc scan-$(1) $$<'
	$$(ENGINE_QUIET)$$(CC) $$(SCAN_FLAGS) $$(SCAN_CFLAGS_$(1)) $$(SCAN_ISA) -c $$< -o $$@

$$(addprefix $(BUILD)/scan-$(1)/,$$(SCAN_TESTS)): $(BUILD)/scan-$(1)/%: csrc/tests/%.c \
    $$(SCAN_TEST_SUPPORT) $$(addprefix $(BUILD)/scan-$(1)/,$$(SCAN_OBJECTS)) $$(wildcard csrc/tests/*.h)
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(SCAN_FLAGS) $$(SCAN_CFLAGS_$(1)) $$(filter %.c %.o,$$^) -lm -o $$@

.PHONY: test-scan-$(1)
test-scan-$(1): $$(addprefix $(BUILD)/scan-$(1)/,$$(SCAN_TESTS))
	@for test in $$^; do echo "== $$$$test"; $(RUN) $$$$test || exit 1; done
endef
$(foreach variant,omp debug,$(eval $(call scan_variant,$(variant))))

.PHONY: engine omp debug fast dvc-engine test-c test-c-scalar test-tsan fuzz fuzz-run fuzz-seeds engine-clean \
    test-cross $(addprefix test-cross-,aarch64 armhf s390x) test-big-endian test-valgrind ENGINE_FORCE
engine: $(BUILD)/plain/mamba $(BUILD)/plain/libmamba.so ## ./mamba, one thread
	@$(call engine_install,$(BUILD)/plain)

omp: $(BUILD)/omp/mamba $(BUILD)/omp/libmamba.so ## ./mamba with OpenMP over the images of a batch
	@$(call engine_install,$(BUILD)/omp)

debug: $(BUILD)/debug/mamba $(BUILD)/debug/libmamba.so ## ./mamba with AddressSanitizer and UndefinedBehaviorSanitizer
	@$(call engine_install,$(BUILD)/debug)

fast: $(BUILD)/fast/mamba $(BUILD)/fast/libmamba.so ## ./mamba with -Ofast for this very machine; not for releases
	@$(call engine_install,$(BUILD)/fast)
	@echo "./mamba was built with -Ofast -march=native: for curiosity, not for tests or releases"

dvc-engine: $(OUT)/mamba $(OUT)/libmamba.so

# The oracle itself, which no machine with vectors would take.
test-c-scalar: $(BUILD)/plain/tests/test_forward $(BUILD)/plain/tests/test_golden
	@for test in $^; do echo "== $$test (scalar)"; MAMBA_ISA=scalar $(RUN) $$test || exit 1; done

# ThreadSanitizer wants addresses where newer kernels' randomisation does not put them.
test-tsan: $(BUILD)/tsan/tests/test_threads
	@echo "== $<"; $(shell setarch -R true 2>/dev/null && echo setarch -R) $<

test-c: test-c-plain test-c-scalar test-c-omp test-c-debug test-tsan fuzz-seeds test-scan-omp test-scan-debug ## the C tests: plain, OpenMP, sanitizers

# ---- fuzzing: csrc/fuzz ----

SECONDS := 60
FUZZ_TARGETS := model input idx
FUZZ_SEEDS_model := csrc/tests/golden csrc/fuzz/seeds/model
FUZZ_SEEDS_input := csrc/fuzz/seeds/input
FUZZ_SEEDS_idx := csrc/fuzz/seeds/idx
# The code under test reports where it is: to libFuzzer if CC is clang, else to mutator.c.
ifeq ($(shell $(CC) --version 2>/dev/null | grep -ci clang),0)
FUZZ_COVERAGE := -fsanitize-coverage=trace-pc
FUZZ_MAIN := $(BUILD)/fuzz/mutator.o
else
FUZZ_COVERAGE := -fsanitize=fuzzer-no-link
FUZZ_LINK := -fsanitize=fuzzer
endif
ENGINE_CFLAGS_fuzz += $(FUZZ_COVERAGE)

$(BUILD)/fuzz/mutator.o: csrc/fuzz/mutator.c csrc/fuzz/target.h $(BUILD)/fuzz/obj/flags
	@mkdir -p $(@D)
	$(ENGINE_QUIET)$(CC) $(ENGINE_FLAGS) -O2 -g -fsanitize=address -c $< -o $@

$(BUILD)/fuzz/fuzz_%: $(BUILD)/fuzz/obj/fuzz/%.o $(FUZZ_MAIN) $(ENGINE_LIB_fuzz) $(BUILD)/fuzz/obj/engine/idx.o
	@echo '  link $@'
	$(ENGINE_QUIET)$(CC) $(ENGINE_CFLAGS_fuzz) $(FUZZ_LINK) $(LDFLAGS) $^ -lm -o $@

FUZZERS := $(addprefix $(BUILD)/fuzz/fuzz_,$(FUZZ_TARGETS))

# Each seed, and each input that once was a finding, runs once.
fuzz-seeds: $(FUZZERS)
	@for target in $(FUZZ_TARGETS); do echo "== fuzz_$$target: its seeds"; done
	@$(foreach target,$(FUZZ_TARGETS),$(BUILD)/fuzz/fuzz_$(target) $(if $(FUZZ_LINK),-runs=0) $(FUZZ_SEEDS_$(target)) &&) true

# With clang's libFuzzer where there is one, unless CC was chosen.
ifeq ($(origin CC),default)
FUZZ_PROBE := int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 9; }
find_fuzzer = $(shell echo '$(FUZZ_PROBE)' | clang -fsanitize=fuzzer -x c - -o /dev/null 2>/dev/null && \
    echo CC=clang BUILD=$(BUILD)/clang)
endif

fuzz: ## SECONDS (60) of random bytes for each reader of files: model, input, IDX
	+@$(MAKE) -f csrc/engine.mk fuzz-run SECONDS=$(SECONDS) $(find_fuzzer)

fuzz-run: $(FUZZERS)
	@$(foreach target,$(FUZZ_TARGETS),echo "== fuzz_$(target), $(SECONDS) s" && $(BUILD)/fuzz/fuzz_$(target) \
	    $(if $(FUZZ_LINK),-max_total_time=$(SECONDS) -artifact_prefix=$(BUILD)/fuzz/ $$(mkdir -p $(BUILD)/fuzz/corpus_$(target); echo $(BUILD)/fuzz/corpus_$(target)),--seconds $(SECONDS)) \
	    $(FUZZ_SEEDS_$(target)) &&) true

# ---- other processors, other checkers ----

# NAME:compiler's prefix:qemu's name. armhf is a 32-bit machine, s390x a big-endian one.
CROSS := aarch64:aarch64-linux-gnu:aarch64 armhf:arm-linux-gnueabihf:arm
CROSS_NAMES := $(foreach target,$(CROSS),$(firstword $(subst :, ,$(target))))
cross_compiler = $(word 2,$(subst :, ,$(filter $(1):%,$(CROSS) s390x:s390x-linux-gnu:s390x)))
cross_qemu = qemu-$(word 3,$(subst :, ,$(filter $(1):%,$(CROSS) s390x:s390x-linux-gnu:s390x)))

# $(call cross_check,NAME): the two tools are there, or the recipe says what to install.
cross_check = @for tool in $(call cross_compiler,$(1))-gcc $(call cross_qemu,$(1)); do \
    command -v $$tool >/dev/null || { echo "error: $$tool is not there; on Debian:" \
    "apt-get install qemu-user gcc-$(call cross_compiler,$(1))" >&2; exit 1; }; done
cross_make = $(MAKE) -f csrc/engine.mk CC=$(call cross_compiler,$(1))-gcc BUILD=build/$(1) \
    RUN="$(call cross_qemu,$(1)) -L /usr/$(call cross_compiler,$(1))"

test-cross: $(addprefix test-cross-,$(CROSS_NAMES) s390x) ## the C tests on arm64, 32-bit arm and a big-endian machine, run by qemu-user

$(addprefix test-cross-,$(CROSS_NAMES)): test-cross-%:
	$(call cross_check,$*)
	+@$(call cross_make,$*) test-c-plain test-c-scalar test-scan-omp

test-cross-s390x:
	$(call cross_check,s390x)
	+@$(call cross_make,s390x) test-big-endian

# Model files are little-endian and used in place: a big-endian machine must say so.
test-big-endian: $(BUILD)/plain/mamba $(BUILD)/plain/tests/test_idx
	@echo "== $(BUILD)/plain/tests/test_idx"; $(RUN) $(BUILD)/plain/tests/test_idx
	@echo "== a big-endian machine refuses models"
	@for command in "info models/mnist_mamba.bin" "models/mnist_mamba.bin models/example_input.bin"; do \
	    message=$$($(RUN) $(BUILD)/plain/mamba $$command 2>&1); code=$$?; echo "$$message"; \
	    [ $$code -eq 4 ] && case "$$message" in *"byte order"*) ;; *) false;; esac || exit 1; done

# valgrind knows no AVX-512: the kernels are those for AVX2. test_kernels goes through millions of floats
# for each function, test_hostile through every bit: what is left has all the code.
VALGRIND_TESTS := test_model test_threads test_idx test_forward test_golden
test-valgrind: $(addprefix $(BUILD)/plain/tests/,$(VALGRIND_TESTS)) $(BUILD)/plain/mamba ## the C tests under valgrind
	@command -v valgrind >/dev/null || { echo "error: valgrind is not there: install it" >&2; exit 1; }
	@for test in $(addprefix $(BUILD)/plain/tests/,$(VALGRIND_TESTS)) "$(BUILD)/plain/mamba models/mnist_mamba.bin models/example_input.bin" \
	    "$(BUILD)/plain/mamba info models/mnist_mamba.bin --no-mmap"; do \
	    echo "== $$test"; valgrind -q --leak-check=full --error-exitcode=9 $$test || exit 1; done

engine-clean:
	rm -rf $(addprefix $(BUILD)/,plain omp debug fast tsan fuzz dvc clang) $(BUILD)/scan-omp $(BUILD)/scan-debug \
	    $(addprefix build/,$(CROSS_NAMES) s390x) mamba
