# The only place that knows the virtual environment. PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml setup.py MANIFEST.in LICENSE README.md docs/commands.py docs/manpages.py docs/reference/exit-codes.md $(shell find src ext -type f -not -name '*.so' -not -path '*egg-info*')
# Debian's names of the programs that the tests talk to. Where they cannot be installed, the tests that need them say so.
# systemd, which a few talk to, is left to you: it may replace what manages services on a machine.
PEERS := socat ncat netcat-openbsd openssl gnutls-bin haproxy stunnel4 iperf3 logrotate
# What the tests look at results with.
TOOLS := chromium fish git valgrind zsh

# What the benchmarks compare besides: the headers of OpenSSL are for the C baseline.
RIVALS := $(PEERS) libssl-dev

# Debian keeps some of them where only root looks.
export PATH := $(PATH):/usr/sbin:/sbin

# Install the packages $(1) if one of the programs $(2) is missing and that can be done; say what is missing in the end.
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=60 -o Acquire::Retries=0 -o Acquire::http::Timeout=20
define bring
for program in $(2); do command -v $$program > /dev/null || missing="$$missing $$program"; done; \
if [ -n "$$missing" ]; then \
	sudo="sudo -n"; [ "$$(id -u)" = 0 ] && sudo=; install="env $(APT) install -y --no-install-recommends $(1)"; \
	{ $$sudo $$install || { [ -z "$$updated" ] && updated=1 && $$sudo env $(APT) update && $$sudo $$install; }; } > /dev/null 2>&1; \
	for program in $(2); do command -v $$program > /dev/null \
	|| echo "$$program is missing and could not be installed: what needs it is skipped, with CI=true its test fails"; done; fi
endef

# How many tests of make test run at once: most of them wait.
WORKERS ?= 4
# Of make stress: how many rounds, and how many of them side by side.
STRESS_ROUNDS ?= 10
STRESS_JOBS ?= 1
# Of make soak: how long.
SOAK_MINUTES ?= 30

.PHONY: help demo peers test stress soak bench bench-instructions lint sanitize clean

help:
	@echo "make demo   move 2 GiB over TCP and TLS and compare the sums"
	@echo "make test   install, bring the peers, and run the tests"
	@echo "make stress  the tests STRESS_ROUNDS=10 times in random order on a busy machine, STRESS_JOBS=1 side by side"
	@echo "make soak   reopen files, change certificates and lose connections for SOAK_MINUTES=30"
	@echo "make bench  measure against C, Python and other programs, some minutes long"
	@echo "make bench-instructions  count the core's instructions under callgrind, and compare with those kept"
	@echo "make docs   build the documentation into build/docs"
	@echo "make wheel  build a wheel into dist that needs no compiler"
	@echo "make release-check  what must hold before a release: version, changelog, docs, wheel, the same bytes twice"
	@echo "make lint   formatting, types, stubs, compiler warnings"
	@echo "make sanitize  the tests of memory and system calls under gcc's sanitizers"
	@echo "make clean  remove what the others made"

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Installed, not editable: what is run and tested is what users get. setuptools would install a module again that was
# moved or deleted since the last build.
$(VENV)/installed: $(VENV)/made $(SOURCES)
	@find build -path '*/lib*' -name '*.py' -delete 2> /dev/null || true
	$(PIP) --force-reinstall --no-deps .
	$(PIP) '.[cli]'
	@touch $@

# The dependency groups of pyproject.toml, which older pips do not know. A library that cannot be installed for one Python
# does not keep the others away: what needs it is skipped, and the next make tries again.
$(VENV)/testing: GROUP := test
$(VENV)/benching: GROUP := bench
$(VENV)/linting: GROUP := lint
$(VENV)/documenting: GROUP := docs
$(VENV)/packing: GROUP := wheel
$(VENV)/testing $(VENV)/benching $(VENV)/documenting $(VENV)/packing $(VENV)/linting: $(VENV)/made pyproject.toml
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['$(GROUP)'], sep='\n')" > $@.txt
	@rm -f $@-without.txt
	$(PIP) -r $@.txt || while read -r package; do $(PIP) --only-binary :all: "$$package" \
	|| { echo "$$package cannot be installed for this Python: what needs it is skipped"; echo "$$package" >> $@-without.txt; }; done < $@.txt
	@[ -e $@-without.txt ] || touch $@

demo: $(VENV)/installed
	$(BIN)/python benchmarks/demo.py

peers:
	@missing=; $(call bring,$(PEERS),socat ncat nc.openbsd openssl gnutls-cli haproxy stunnel iperf3 logrotate); \
	$(foreach tool,$(TOOLS),missing=; $(call bring,$(tool),$(tool));)

# Documentation and wheels are tested too.
test: $(VENV)/installed $(VENV)/testing $(VENV)/documenting $(VENV)/packing peers
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

stress: $(VENV)/installed $(VENV)/testing peers
	$(BIN)/python tests/stress.py --rounds $(STRESS_ROUNDS) --jobs $(STRESS_JOBS) -- $(PYTEST_ARGS)

soak: $(VENV)/installed $(VENV)/testing
	$(BIN)/python tests/soak.py --minutes $(SOAK_MINUTES)

bench: $(VENV)/installed $(VENV)/benching
	@missing=; [ -e /usr/include/openssl/ssl.h ] || missing=1; $(call bring,$(RIVALS),cc socat ncat nc.openbsd haproxy stunnel iperf3)
	$(BIN)/python -m pytest -q --benchmark-columns=min,median,iqr,rounds benchmarks/test_micro.py
	$(BIN)/python -m benchmarks run --json benchmarks/results.json $(BENCH_ARGS)

# UPDATE=1 makes the baseline anew, BASELINE is another one, OPERATIONS are some instead of all.
bench-instructions: $(VENV)/installed $(VENV)/benching
	@missing=; $(call bring,valgrind,valgrind)
	$(BIN)/python -m benchmarks.instructions $(OPERATIONS) $(if $(BASELINE),--baseline $(BASELINE)) $(if $(UPDATE),--update)

.PHONY: docs wheel release-check
# What the reference of Python needs is that of the tests: the libraries behind the feeds.
docs: $(VENV)/installed $(VENV)/documenting $(VENV)/testing
	$(BIN)/python -m sphinx -W --keep-going --fresh-env -q -b html docs build/docs
	@echo "build/docs/index.html"

# auditwheel names the oldest C library that the wheel runs with, and copies in what is not part of every Linux: nothing here.
wheel: $(VENV)/made $(VENV)/packing
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --strip --wheel-dir dist build/wheel/*.whl
	$(BIN)/python -m auditwheel show dist/*.whl

release-check: $(VENV)/installed $(VENV)/documenting $(VENV)/packing $(VENV)/testing
	PYTHON=$(BIN)/python .ci/release-check

lint: $(VENV)/installed $(VENV)/linting
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint ext
	$(BIN)/mypy --python-executable $(BIN)/python
	cd $(VENV) && bin/python -m mypy.stubtest $(patsubst ext/ringmain/%.pyx,ringmain.%,$(sort $(wildcard ext/ringmain/*.pyx)))
	CFLAGS="-Wall -Wextra -Werror" $(BIN)/python setup.py --quiet build_ext --force --build-lib build/lint --build-temp build/lint

# CPython itself leaks at exit, and its allocator hides from the sanitizer what comes from it: neither is of use here.
SANITIZED := .venv-sanitized
SAFETY := $(foreach it,ring pump pump_loop pump_stop path path_outputs low_water low_water_bytes library blocks load_connections merge \
	merge_turns merge_threads,tests/test_$(it).py)
sanitize:
	RINGMAIN_SANITIZE=1 $(MAKE) VENV=$(SANITIZED) $(SANITIZED)/installed $(SANITIZED)/testing
	@$(SANITIZED)/bin/python -c "import sysconfig; print(sysconfig.get_path('platlib'))" > $(SANITIZED)/where
	@grep -q __asan_init $$(cat $(SANITIZED)/where)/ringmain/_pump.*.so || { echo "not built with the sanitizer"; exit 1; }
	LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(SANITIZED)/bin/python -m pytest -p no:cacheprovider $(or $(PYTEST_ARGS),$(SAFETY))

clean:
	rm -rf $(VENV) $(SANITIZED) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks benchmarks/results.json benchmarks/plots
