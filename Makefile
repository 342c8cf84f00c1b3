# `make quickstart` and `make test` need nothing but Python >= 3.10 and a package registry.
# They make .venv, install into it what constraints.txt pins, and are quick the second time.
#
#   make test PYTHON=/path/to/python   run on an environment of your own (with a real Detectron2, say); nothing is installed
#   make quickstart TORCH_INDEX=URL    take torch from that index (the CPU build: see README.md)

BOOT  ?= python3
VENV  := .venv
OUT   ?= output/quickstart
SETUP := constraints.txt setup.py pyproject.toml d2lite/setup.py d2lite/pyproject.toml
KEY   := $(shell $(BOOT) -c "import hashlib, sys; print(hashlib.sha256(b''.join(open(f, 'rb').read() for f in sys.argv[1:]) + sys.version.encode()).hexdigest()[:16])" $(SETUP))

ifdef PYTHON
RUN       := $(PYTHON)
RUNTIME   :=
TESTLIBS  :=
else
RUN       := $(VENV)/bin/python
RUNTIME   := $(VENV)/.installed-$(KEY)
TESTLIBS  := $(VENV)/.test-$(KEY)
endif

PIP = PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)/bin/python -m pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: quickstart test test-slow install clean

install: $(RUNTIME)

quickstart: $(RUNTIME)
	@$(RUN) tools/quickstart.py --output $(OUT)

test: $(TESTLIBS)
	$(RUN) -m pytest -m "not slow"

test-slow: $(TESTLIBS)
	$(RUN) -m pytest

$(VENV)/bin/python:
	$(BOOT) -m venv $(VENV)

# The check for an installed detectron2 runs from another folder, where d2lite/ cannot be picked up by accident.
$(VENV)/.installed-$(KEY): | $(VENV)/bin/python
	@echo "Installing into $(VENV): about 1.5 GB and two minutes the first time"
	$(PIP) $$(cd / && $(CURDIR)/$(VENV)/bin/python -c "import detectron2" 2>/dev/null || echo "-e ./d2lite") -e .
	@touch $@

# Of open_clip_torch only CLIP's vocabulary file is wanted, for projects/SEEM. Its requirements, torchvision and with it another
# torch, are left out, so that it cannot stand in the extra "test".
$(VENV)/.test-$(KEY): $(VENV)/.installed-$(KEY)
	$(PIP) -e ".[test]"
	$(PIP) --no-deps open_clip_torch
	@touch $@

clean:
	rm -rf $(VENV) build d2lite/build *.egg-info d2lite/*.egg-info
