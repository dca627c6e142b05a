# Installs the engine as a library: libmnist_mamba with its header, and the command mnist-mamba.
# csrc/tests.mk includes this file. On its own: `make -f csrc/install.mk install` from the root of
# the repository. csrc/CMakeLists.txt installs the same files.
#
# Variables: PREFIX, LIBDIR (below PREFIX), DESTDIR (a staging folder in front of PREFIX), AR,
# INSTALL, and those of csrc/engine.mk.

include csrc/engine.mk

PREFIX ?= /usr/local
LIBDIR ?= lib
INSTALL ?= install
INSTALL_ROOT = $(DESTDIR)$(PREFIX)

LIBRARY_VERSION := $(shell sed -n 's/^.define MAMBA_VERSION "\(.*\)"/\1/p' csrc/engine/version.h)
LIBRARY_MAJOR := $(firstword $(subst ., ,$(LIBRARY_VERSION)))
LIBRARY_SHARED := libmnist_mamba.so.$(LIBRARY_VERSION)
LIBRARY_SONAME := libmnist_mamba.so.$(LIBRARY_MAJOR)
LIBRARY_OBJECTS := $(call engine_objects,$(BUILD)/plain,$(ENGINE_LIBRARY_SOURCES))
LIBRARY_LINK := -Wl,--version-script=csrc/install/mnist_mamba.map

$(BUILD)/plain/$(LIBRARY_SHARED): $(LIBRARY_OBJECTS) csrc/install/mnist_mamba.map
	@echo '  link $@'
	$(ENGINE_QUIET)$(call engine_link,plain) $(LIBRARY_LINK) -shared -Wl,-soname,$(LIBRARY_SONAME) \
	    $(LIBRARY_OBJECTS) -lm -o $@

$(BUILD)/plain/libmnist_mamba.a: $(LIBRARY_OBJECTS)
	@echo '  ar $@'
	$(ENGINE_QUIET)rm -f $@ && $(AR) rcs $@ $^

# Both files find the folders from where they lie, so the installed tree can be moved.
INSTALL_TEMPLATES := pkgconfig/mnist_mamba.pc \
    $(addprefix cmake/mnist_mamba/mnist_mamba-,config.cmake config-version.cmake)
install_up := $(shell echo '$(LIBDIR)' | sed 's,[^/][^/]*,..,g')
install_template = sed -e 's,@VERSION@,$(LIBRARY_VERSION),' -e 's,@MAJOR@,$(LIBRARY_MAJOR),' \
    -e 's,@UP@,$(install_up),' -e 's,@LIBDIR@,$(LIBDIR),' -e 's,@INCLUDEDIR@,include,' \
    -e 's,@PRIVATE_LIBS@,-lm,' csrc/install/$(notdir $(1)).in > "$(INSTALL_ROOT)/$(LIBDIR)/$(1)"

INSTALL_BUILT := $(addprefix $(BUILD)/plain/,mamba $(LIBRARY_SHARED) libmnist_mamba.a)
INSTALL_FILES := bin/mnist-mamba include/mnist_mamba/mamba.h $(addprefix $(LIBDIR)/, \
    libmnist_mamba.a libmnist_mamba.so $(LIBRARY_SONAME) $(LIBRARY_SHARED) $(INSTALL_TEMPLATES))

##@ Engine

.PHONY: install uninstall
install: $(INSTALL_BUILT) ## install library, header and command in PREFIX (/usr/local)
	@$(INSTALL) -d $(foreach file,$(INSTALL_FILES),"$(INSTALL_ROOT)/$(dir $(file))")
	@$(INSTALL) -m 755 $(BUILD)/plain/mamba "$(INSTALL_ROOT)/bin/mnist-mamba"
	@$(INSTALL) -m 644 csrc/include/mamba.h "$(INSTALL_ROOT)/include/mnist_mamba"
	@$(INSTALL) -m 644 $(BUILD)/plain/libmnist_mamba.a "$(INSTALL_ROOT)/$(LIBDIR)"
	@$(INSTALL) -m 755 $(BUILD)/plain/$(LIBRARY_SHARED) "$(INSTALL_ROOT)/$(LIBDIR)"
	@ln -sf $(LIBRARY_SHARED) "$(INSTALL_ROOT)/$(LIBDIR)/$(LIBRARY_SONAME)"
	@ln -sf $(LIBRARY_SONAME) "$(INSTALL_ROOT)/$(LIBDIR)/libmnist_mamba.so"
	@$(foreach file,$(INSTALL_TEMPLATES),$(call install_template,$(file)) &&) true
	@for file in $(INSTALL_FILES); do echo "$(INSTALL_ROOT)/$$file"; done

uninstall: ## remove what install has put in PREFIX
	@rm -f $(foreach file,$(INSTALL_FILES),"$(INSTALL_ROOT)/$(file)")
	@rmdir "$(INSTALL_ROOT)/include/mnist_mamba" "$(INSTALL_ROOT)/$(LIBDIR)/cmake/mnist_mamba" \
	    2>/dev/null || true

# ---- the engine in one file ----

PYTHON ?= python3
AMALGAMATION := $(BUILD)/amalgamation

.PHONY: amalgamation
amalgamation: $(AMALGAMATION)/mamba.c ## write the engine as two files, build/amalgamation/mamba.*
	@echo "$(AMALGAMATION)/mamba.c $(AMALGAMATION)/mamba.h"

$(AMALGAMATION)/mamba.c: csrc/amalgamate.py csrc/flags.mk $(ENGINE_LIBRARY_SOURCES) \
    $(wildcard csrc/engine/*.h csrc/engine/kernels/*.[hi]* csrc/simd/*.h csrc/include/*.h)
	@$(PYTHON) csrc/amalgamate.py $(AMALGAMATION)
