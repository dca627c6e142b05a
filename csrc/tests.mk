# The C tests: of the engine, of the training kernels, and the fuzzers. The root Makefile includes
# this file. On its own: `make -f csrc/tests.mk TARGET` from the root of the repository.
#
#   test-c          everything that needs only gcc: plain, OpenMP, sanitizers, the fuzzers' seeds
#   test-amalgamation  the tests of the engine as one file
#   test-cross      the tests for other processors, run by qemu-user
#   test-valgrind   the tests under valgrind
#   fuzz            SECONDS of random bytes for each reader of files, or RUNS inputs
#
# RUN is a program that runs the tests. BUILD, CC and CFLAGS are as in csrc/engine.mk.

include csrc/install.mk

RUN :=
# OpenMP's threads would keep a core busy while they wait, which doubles the time of some tests.
test-%: export OMP_WAIT_POLICY := passive

##@ Test

# ---- the engine ----

ENGINE_TESTS := test_allocation test_kernels test_model test_hostile test_threads test_exit test_idx \
    test_write_file test_picture test_forward test_golden test_numbers test_bench test_commands
# These test what only POSIX has: processes, signals, threads, pages, owners of files.
# The machine is called windows by clang and mingw by gcc.
ifneq ($(filter windows% mingw%,$(subst -, ,$(shell $(CC) -dumpmachine))),)
ENGINE_TESTS := $(filter-out test_allocation test_hostile test_threads test_idx test_write_file \
    test_bench test_commands,$(ENGINE_TESTS))
endif
ENGINE_TEST_SUPPORT := $(filter-out csrc/engine/cli/main.c,$(ENGINE_COMMAND_SOURCES)) \
    csrc/tests/engine/tiny_model.c csrc/tests/engine/reference.c

# Many tests compare with it. -O2 inlines its sums: under qemu, test_numbers takes 7 s, not 10.
TUNE_reference = -O2

# OpenMP is in one loop, over the images of a batch. The other variants run every test in full.
ENGINE_TESTS_omp := $(filter-out test_idx test_write_file test_picture,$(ENGINE_TESTS))
test-c-omp: export CHECK_SAMPLE := 1

# $(eval $(call engine_tests,VARIANT,FOLDER)), after engine_variant.
define engine_tests
$(2)/obj/tests/%.o: private CPPFLAGS += -Icsrc/tests

$(2)/tests/%: $(2)/obj/tests/engine/%.o \
    $$(call engine_objects,$(2),$$(ENGINE_LIBRARY_SOURCES) $$(ENGINE_TEST_SUPPORT))
	@mkdir -p $$(@D)
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(call engine_link,$(1)) $$^ -lm -pthread -o $$@

.PHONY: test-c-$(1)
test-c-$(1): $$(addprefix $(2)/tests/,$$(or $$(ENGINE_TESTS_$(1)),$$(ENGINE_TESTS))) $(2)/mamba
	@for test in $$(filter $(2)/tests/%,$$^); do \
	    echo "== $$$$test"; $(RUN) $$$$test || exit 1; done
	@echo "== csrc/tests/engine/test_cli.sh ($(1))"
	@RUN="$(RUN)" sh csrc/tests/engine/test_cli.sh $(2)/mamba
endef

$(foreach variant,plain omp debug,$(eval $(call engine_tests,$(variant),$(BUILD)/$(variant))))

# The scalar kernels, which no machine with vectors would choose by itself.
test-c-scalar: $(BUILD)/plain/tests/test_forward $(BUILD)/plain/tests/test_golden
	@for test in $^; do echo "== $$test (scalar)"; MAMBA_ISA=scalar $(RUN) $$test || exit 1; done

# The tests against the engine in one file, which a stranger's compiler builds without our flags.
# Its results have the bits of the usual build.
AMALGAMATED := $(ENGINE_TESTS)
$(AMALGAMATION)/mamba.o: $(AMALGAMATION)/mamba.c
	@echo '  cc $<'
	$(ENGINE_QUIET)$(CC) -O2 $(WARNINGS) -Werror -c $< -o $@

$(AMALGAMATION)/tests/%: $(BUILD)/plain/obj/tests/engine/%.o $(AMALGAMATION)/mamba.o \
    $(call engine_objects,$(BUILD)/plain,$(ENGINE_TEST_SUPPORT))
	@mkdir -p $(@D)
	@echo '  link $@'
	$(ENGINE_QUIET)$(CC) $^ -lm -pthread -o $@

$(AMALGAMATION)/mamba: $(AMALGAMATION)/mamba.o \
    $(call engine_objects,$(BUILD)/plain,$(ENGINE_COMMAND_SOURCES))
	$(ENGINE_QUIET)$(CC) $^ -lm -o $@

.PHONY: test-amalgamation
test-amalgamation: $(addprefix $(AMALGAMATION)/,$(addprefix tests/,$(AMALGAMATED)) mamba) \
    $(BUILD)/plain/mamba
	@for test in $(addprefix $(AMALGAMATION)/tests/,$(AMALGAMATED)); do \
	    echo "== $$test"; $(RUN) $$test || exit 1; done
	@for isa in scalar avx2 avx512 neon; do \
	    for build in plain amalgamation; do MAMBA_ISA=$$isa $(RUN) $(BUILD)/$$build/mamba \
	        models/mnist_mamba.bin models/example_input.bin --json \
	        > $(AMALGAMATION)/$$build.txt 2>&1; done; \
	    echo "== $(AMALGAMATION)/mamba, $$isa: $$(cut -c -60 $(AMALGAMATION)/plain.txt)"; \
	    [ $$isa != scalar ] || grep -q logits $(AMALGAMATION)/plain.txt || exit 1; \
	    cmp $(AMALGAMATION)/plain.txt $(AMALGAMATION)/amalgamation.txt || exit 1; done

ENGINE_CFLAGS_tsan = -O1 -g -Werror -fsanitize=thread
$(eval $(call engine_variant,tsan,$(BUILD)/tsan))
$(eval $(call engine_tests,tsan,$(BUILD)/tsan))

# ThreadSanitizer does not work with the address randomisation of newer kernels.
test-tsan: $(BUILD)/tsan/tests/test_threads
	@echo "== $<"; $(shell setarch -R true 2>/dev/null && echo setarch -R) $<

TEST_C := $(addprefix test-c-,plain scalar omp debug) test-tsan fuzz-seeds \
    $(addprefix test-scan-,omp debug)
test-c: $(TEST_C) ## run the C tests: plain, OpenMP, sanitizers

# ---- the training kernels ----

# Python builds the training kernels for itself (src/mnist_mamba/scan/c_library.py). These builds
# are for their tests, with OpenMP and with sanitizers.
SCAN_FLAGS := -std=c11 $(WARNINGS) -Werror -Icsrc/scan -Icsrc/simd -Icsrc/tests $(SCAN_MATH)
SCAN_CFLAGS_omp := -O3 -fopenmp
SCAN_CFLAGS_debug := -O1 -g $(SANITIZE)
SCAN_TESTS := test_dispatch test_scan test_block
SCAN_TEST_SUPPORT := $(addprefix $(BUILD)/scan-tests/,exact_block.o exact_scan.o random_tensors.o)
SCAN_OBJECTS := $(patsubst csrc/scan/%.c,%.o,$(sort $(wildcard csrc/scan/*.c)))
ifneq ($(IS_X86),)
$(BUILD)/scan-%/kernel_avx2.o: SCAN_ISA := $(ISA_avx2)
$(BUILD)/scan-%/kernel_avx512.o: SCAN_ISA := $(ISA_avx512)
endif

# The sums in double precision that all variants compare with. Sanitizers would only slow them down:
# buffers of the kernels come from malloc, so AddressSanitizer knows their ends.
$(SCAN_TEST_SUPPORT): $(BUILD)/scan-tests/%.o: csrc/tests/scan/%.c \
    $(wildcard csrc/scan/*.h csrc/tests/*.h csrc/tests/scan/*.h) csrc/tests.mk
	@mkdir -p $(@D)
	@echo '  cc $<'
	$(ENGINE_QUIET)$(CC) $(SCAN_FLAGS) -O3 -c $< -o $@

# $(call scan_variant,NAME)
define scan_variant
$(BUILD)/scan-$(1)/%.o: csrc/scan/%.c $$(wildcard csrc/scan/*.h csrc/scan/*.inc csrc/simd/*.h) csrc/tests.mk
	@mkdir -p $$(@D)
	@echo '  cc scan-$(1) $$<'
	$$(ENGINE_QUIET)$$(CC) $$(SCAN_FLAGS) $$(SCAN_CFLAGS_$(1)) $$(SCAN_ISA) -c $$< -o $$@

$$(addprefix $(BUILD)/scan-$(1)/,$$(SCAN_TESTS)): $(BUILD)/scan-$(1)/%: csrc/tests/scan/%.c \
    $$(SCAN_TEST_SUPPORT) $$(addprefix $(BUILD)/scan-$(1)/,$$(SCAN_OBJECTS)) $$(wildcard csrc/tests/*.h csrc/tests/scan/*.h)
	@echo '  link $$@'
	$$(ENGINE_QUIET)$$(CC) $$(SCAN_FLAGS) $$(SCAN_CFLAGS_$(1)) $$(filter %.c %.o,$$^) -lm -o $$@

.PHONY: test-scan-$(1)
test-scan-$(1): $$(addprefix $(BUILD)/scan-$(1)/,$$(SCAN_TESTS))
	@for test in $$^; do echo "== $$$$test"; $(RUN) $$$$test || exit 1; done
endef
$(foreach variant,omp debug,$(eval $(call scan_variant,$(variant))))

# ---- fuzzing: csrc/fuzz ----

SECONDS := 60
RUNS := # number of inputs, instead of SECONDS
FUZZ_TARGETS := model input idx picture
FUZZ_SEEDS_model := csrc/tests/golden csrc/fuzz/seeds/model
FUZZ_SEEDS_input := csrc/fuzz/seeds/input
FUZZ_SEEDS_idx := csrc/fuzz/seeds/idx
FUZZ_SEEDS_picture := csrc/fuzz/seeds/picture
# The code under test reports its coverage to libFuzzer if CC is clang, else to mutator.c.
ifneq ($(IS_GCC),)
FUZZ_COVERAGE := -fsanitize-coverage=trace-pc
FUZZ_MAIN := $(BUILD)/fuzz/mutator.o
else
FUZZ_COVERAGE := -fsanitize=fuzzer-no-link
FUZZ_LINK := -fsanitize=fuzzer
endif
ENGINE_CFLAGS_fuzz = -O1 -g -Werror $(SANITIZE) -DNDEBUG $(FUZZ_COVERAGE)
$(eval $(call engine_variant,fuzz,$(BUILD)/fuzz))

$(BUILD)/fuzz/mutator.o: csrc/fuzz/mutator.c csrc/fuzz/target.h $(BUILD)/fuzz/obj/flags
	@mkdir -p $(@D)
	$(ENGINE_QUIET)$(CC) $(ENGINE_FLAGS) -O2 -g -fsanitize=address -c $< -o $@

$(BUILD)/fuzz/fuzz_%: $(BUILD)/fuzz/obj/fuzz/%.o $(FUZZ_MAIN) \
    $(call engine_objects,$(BUILD)/fuzz,$(ENGINE_LIBRARY_SOURCES) \
        $(addprefix csrc/engine/cli/,idx.c input.c netpbm.c posix.c))
	@echo '  link $@'
	$(ENGINE_QUIET)$(CC) $(ENGINE_CFLAGS_fuzz) $(FUZZ_LINK) $(LDFLAGS) $^ -lm -o $@

FUZZERS := $(addprefix $(BUILD)/fuzz/fuzz_,$(FUZZ_TARGETS))

# Run each seed once, among them inputs that once were findings.
fuzz-seeds: $(FUZZERS)
	@for target in $(FUZZ_TARGETS); do echo "== fuzz_$$target: its seeds"; done
	@$(foreach target,$(FUZZ_TARGETS),$(BUILD)/fuzz/fuzz_$(target) $(if $(FUZZ_LINK),-runs=0) $(FUZZ_SEEDS_$(target)) &&) true

# Use clang's libFuzzer where there is one, unless CC is set.
ifeq ($(origin CC),default)
FUZZ_PROBE := int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 9; }
find_fuzzer = $(shell echo '$(FUZZ_PROBE)' | clang -fsanitize=fuzzer -x c - -o /dev/null 2>/dev/null && \
    echo CC=clang BUILD=$(BUILD)/clang)
endif

# Built here first, in case `make -j` also builds them for fuzz-seeds.
fuzz: $(FUZZERS) ## try random bytes on each reader of files, for SECONDS (60) or RUNS inputs
	+@$(MAKE) -f csrc/tests.mk fuzz-run SECONDS=$(SECONDS) RUNS=$(RUNS) $(find_fuzzer)

ifdef FUZZ_LINK
FUZZ_LIMIT = $(if $(RUNS),-runs=$(RUNS),-max_total_time=$(SECONDS))
else
FUZZ_LIMIT = $(if $(RUNS),--runs $(RUNS),--seconds $(SECONDS))
endif
fuzz-run: $(FUZZERS)
	@$(foreach target,$(FUZZ_TARGETS),echo "== fuzz_$(target), $(or $(RUNS),$(SECONDS) s)" && $(BUILD)/fuzz/fuzz_$(target) $(FUZZ_LIMIT) \
	    $(if $(FUZZ_LINK),-artifact_prefix=$(BUILD)/fuzz/ $$(mkdir -p $(BUILD)/fuzz/corpus_$(target); echo $(BUILD)/fuzz/corpus_$(target))) \
	    $(FUZZ_SEEDS_$(target)) &&) true

# ---- other processors, other checkers ----

# NAME:compiler prefix:name of qemu. armhf is a 32-bit machine, s390x a big-endian one.
CROSS := aarch64:aarch64-linux-gnu:aarch64 armhf:arm-linux-gnueabihf:arm
CROSS_NAMES := $(foreach target,$(CROSS),$(firstword $(subst :, ,$(target))))
cross_compiler = $(word 2,$(subst :, ,$(filter $(1):%,$(CROSS) s390x:s390x-linux-gnu:s390x)))
cross_qemu = qemu-$(word 3,$(subst :, ,$(filter $(1):%,$(CROSS) s390x:s390x-linux-gnu:s390x)))

# $(call cross_check,NAME): check that both tools are there, or say what to install.
cross_check = @for tool in $(call cross_compiler,$(1))-gcc $(call cross_qemu,$(1)); do \
    command -v $$tool >/dev/null || { echo "error: $$tool not found; on Debian, run" \
    "apt-get install qemu-user gcc-$(call cross_compiler,$(1))" >&2; exit 1; }; done
cross_make = CHECK_SAMPLE=1 $(MAKE) -f csrc/tests.mk CC=$(call cross_compiler,$(1))-gcc \
    BUILD=build/$(1) RUN="$(call cross_qemu,$(1)) -L /usr/$(call cross_compiler,$(1))"

test-cross: $(addprefix test-cross-,$(CROSS_NAMES) s390x) ## run the C tests of other CPUs with qemu

# 32-bit arm has the scalar kernels only, so test-c-plain has run them.
$(addprefix test-cross-,$(CROSS_NAMES)): test-cross-%:
	$(call cross_check,$*)
	+@$(call cross_make,$*) test-c-plain $(if $(filter aarch64,$*),test-c-scalar) test-scan-omp \
	    test-amalgamation AMALGAMATED=test_golden

test-cross-s390x:
	$(call cross_check,s390x)
	+@$(call cross_make,s390x) test-big-endian

# A big-endian machine must refuse models: they are little-endian, and used in place.
test-big-endian: $(BUILD)/plain/mamba $(BUILD)/plain/tests/test_idx
	@echo "== $(BUILD)/plain/tests/test_idx"; $(RUN) $(BUILD)/plain/tests/test_idx
	@echo "== a big-endian machine refuses models"
	@for command in "info models/mnist_mamba.bin" "models/mnist_mamba.bin models/example_input.bin"; do \
	    message=$$($(RUN) $(BUILD)/plain/mamba $$command 2>&1); code=$$?; echo "$$message"; \
	    [ $$code -eq 4 ] && case "$$message" in *"byte order"*) ;; *) false;; esac || exit 1; done

# valgrind has no AVX-512, so the AVX2 kernels run. Left out are test_allocation, which replaces
# malloc, and test_kernels and test_numbers, which run the kernels on millions of floats
# (test_forward runs the same code).
VALGRIND := valgrind -q --leak-check=full --error-exitcode=9
VALGRIND_TESTS := $(filter-out test_allocation test_kernels test_numbers,$(ENGINE_TESTS))
VALGRIND_PROGRAMS := $(addprefix $(BUILD)/plain/tests/,$(VALGRIND_TESTS))
test-valgrind: export CHECK_SAMPLE := 1
test-valgrind: $(VALGRIND_PROGRAMS) $(BUILD)/plain/mamba ## run the C tests under valgrind
	@command -v valgrind >/dev/null || { echo "error: valgrind not found: install it" >&2; exit 1; }
	@for test in $(VALGRIND_PROGRAMS) \
	    "$(BUILD)/plain/mamba models/mnist_mamba.bin models/example_input.bin"; do \
	    echo "== $$test"; $(VALGRIND) $$test || exit 1; done
	@echo "== csrc/tests/engine/test_cli.sh"
	@RUN="$(VALGRIND)" sh csrc/tests/engine/test_cli.sh $(BUILD)/plain/mamba

.PHONY: test-c test-c-scalar test-tsan fuzz fuzz-run fuzz-seeds test-cross test-big-endian test-valgrind \
    $(addprefix test-cross-,$(CROSS_NAMES) s390x) tests-clean

tests-clean: engine-clean
	rm -rf $(addprefix $(BUILD)/,tsan fuzz clang amalgamation scan-omp scan-debug scan-tests $(CROSS_NAMES) s390x)
