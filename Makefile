# `make demo` and `make test` need Python 3.10 or newer, and make themselves a .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint format notebooks clean

demo: .venv/installed
	$(BIN)/python train.py --dataset digits --max-minutes 2 --sample-interval 20 --save-interval 0 \
		--output-dir outputs/demo --overwrite
	$(BIN)/python sample.py --checkpoint outputs/demo/model_final.pt --show-intermediate \
		--output outputs/demo/generated_samples.png
	$(BIN)/python visualize_diffusion.py --dataset digits --save-path outputs/demo/forward_process.png
	@echo "Look at outputs/demo/generated_samples.png, outputs/demo/intermediate/filmstrip.png,"
	@echo "outputs/demo/samples/ and outputs/demo/forward_process.png"

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: .venv/installed-dev
	$(BIN)/python notebooks/execute.py

clean:
	rm -rf .venv

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
