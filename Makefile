# Needs Python 3.10 or newer. Everything is installed into .venv.
PYTHON ?= python3
BIN = .venv/bin
# pip shows its progress on a terminal, but not in CI.
INSTALL = @if [ -t 1 ] && [ -z "$$CI" ]; then set --; else set -- --quiet; fi; \
	$(BIN)/python -m pip install --disable-pip-version-check "$$@"

.PHONY: help demo test lint format notebooks clean
.DEFAULT_GOAL = help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed  ## install, sample from trained weights, train for two minutes, sample
	@echo "Sampling from weights/mnist.safetensors ..."
	$(BIN)/python sample.py --checkpoint weights/mnist.safetensors --steps 20 --guidance-scale 1.15 \
		--precision auto --output outputs/demo/mnist.png
	@echo "The picture is outputs/demo/mnist.png. Now training on digits for two minutes ..."
	$(BIN)/python train.py --dataset digits --max-minutes 2 --sample-interval 20 --save-interval 0 \
		--output-dir outputs/demo --overwrite
	$(BIN)/python sample.py --checkpoint outputs/demo/model_final.pt --show-intermediate \
		--output outputs/demo/generated_samples.png
	$(BIN)/python visualize_diffusion.py --dataset digits --save-path outputs/demo/forward_process.png
	@echo "Look at outputs/demo/generated_samples.png, outputs/demo/intermediate/filmstrip.png,"
	@echo "outputs/demo/samples/ and outputs/demo/forward_process.png"

test: lint  ## lint, then run the tests
	$(BIN)/python -m pytest

lint: .venv/installed-dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: .venv/installed-dev  ## run the notebooks and save them with their outputs
	$(BIN)/python notebooks/execute.py

clean:  ## delete .venv
	rm -rf .venv

.venv/installed: requirements.txt
	@echo "Installing requirements.txt into .venv. This takes about two minutes. On Linux it downloads"
	@echo "several GB, because PyTorch includes CUDA libraries (README.md: how to get the CPU build)."
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-avatars.txt requirements-text.txt requirements-diffusers.txt requirements-onnx.txt
	@echo "Installing requirements-dev.txt into .venv"
	$(INSTALL) -r requirements-dev.txt
	touch $@
