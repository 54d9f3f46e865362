# make demo: install into .venv and run the main job.   make test: linters and tests.
# make robustness: bad input of every kind, counted.
# make bench: how fast selection is, and where the time of an answer goes, on this machine.
# make results: run again what results/pocket holds, in results/pocket/new, in parts (results-pocket, results-photo, results-llava,
# results-clips, results-costs) that can be made one by one. Each replaces its runs in
# results/pocket/runs, an archive of scores and provenance, and its tables. The runs with their answers are then in
# results/pocket/last.
# make report: one page about them, report.html; its gallery comes from results/pocket/sample.json.
# make lock: write constraints.txt anew, the versions that .venv holds, and constraints-lowest.txt.
# make test-lowest, make test-newest: the same code on other versions, in .venv-lowest (Python 3.11 or 3.12) and .venv-newest.
# make clean: remove these environments and what the tools cached here; runs below results/ and the data sets' cache in ~ stay.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test robustness test-lowest test-newest lock bench results results-pocket results-photo results-llava results-clips results-costs report clean

demo: .venv/.installed
	$(BIN)/python -m harness
	$(BIN)/python -m harness.doctor only=reproduces strict=true

# Two test processes share the cores; torch with more threads than cores is many times slower. tests/conftest.py says
# which files come first; pytest-xdist would begin with those that have the most tests.
test: export OMP_NUM_THREADS = 1
test: export PYTHONDONTWRITEBYTECODE =  # else every process compiles our files and rewrites the tests again
test: .venv/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What was tried of each kind of bad input, and what held; thousands of inputs are drawn, make test draws a tenth of them.
robustness: export OMP_NUM_THREADS = 1
robustness: export THOROUGH = 1
robustness: .venv/.installed-test
	$(BIN)/pytest -n 2 --dist worksteal -m kind

# Other versions than the locked ones: what methods promise, what decoding through a cache gives, embedded questions.
ELSEWHERE := tests/methods/test_contract.py tests/pruning/test_decoding.py tests/models/test_adapter_calls.py tests/pruning/test_sabotage.py tests/pruning/test_steps.py tests/models/test_qwen3vl.py
test-lowest test-newest: export OMP_NUM_THREADS = 1
test-lowest test-newest: test-%: .venv-%/.installed
	.venv-$*/bin/pytest -n 2 --dist worksteal $(ELSEWHERE)
	.venv-$*/bin/python -m harness.doctor only=reproduces strict=true

lock:
	PYTHON=$(PYTHON) scripts/lock.sh

bench: .venv/.installed
	$(BIN)/python -m harness.bench kernels
	$(BIN)/python -m harness.bench methods=[idpruner,visionselector,scope,resize] warmup=1 repeats=5

RUNS := results/pocket/runs
NEW := results/pocket/new
TABLES := $(BIN)/python -m harness.tables
METHODS := random,uniform,avg_pool,greedy,visionselector,fastv,hiprune,fps,divprune,dart,idpruner,hybrid,dpp
METHODS := $(METHODS),visionzip,vispruner,scope,cdpruner,d2pruner,id_selection,holov
METHODS := $(METHODS),fastervlm,mmtok,tome,prunesid,prumerge,prumerge_plus,vlmpruner
# Their budget is a mean over layers: layer 0 of 5 sees all tokens, so that a mean of a tenth of them cannot be.
SCHEDULES := pyramiddrop,sparsevlm
LLAVA := model=pocket_llava tasks=pocket_image
RUN := $(BIN)/python -m harness
results-pocket: .venv/.installed
	$(RUN) method=none tasks=pocket_blank runs=$(NEW)/pocket
	$(RUN) -m method=$(METHODS),resize keep=0.25,0.1 runs=$(NEW)/pocket
	$(RUN) -m method=$(SCHEDULES) keep=0.25 runs=$(NEW)/pocket
	$(RUN) -m method=pyramiddrop method.budget_at=end keep=0.25,0.1 runs=$(NEW)/pocket
	$(RUN) -m method=sparsevlm method.budget_at=end keep=0.25,0.1 runs=$(NEW)/pocket
	$(RUN) -m method=random seed=1,2 keep=0.25,0.1 runs=$(NEW)/pocket
	$(BIN)/python -m harness.export runs=$(NEW)/pocket archive=$(RUNS)
	$(TABLES) runs=$(RUNS)/pocket/pocket csv=results/pocket/table.csv
	$(TABLES) runs=$(RUNS)/pocket/pocket_blank csv=results/pocket/blank.csv

PHOTO := model=pocket_photo tasks=photo
results-photo: .venv/.installed
	$(RUN) model=pocket_photo tasks=photo_unseen method=none runs=$(NEW)/photo
	$(RUN) model=pocket_photo tasks=photo_blank method=none runs=$(NEW)/photo
	$(RUN) -m $(PHOTO) method=$(METHODS) keep=0.25,0.1,0.05 runs=$(NEW)/photo
	$(RUN) -m $(PHOTO) method=random seed=1,2 keep=0.25,0.1,0.05 runs=$(NEW)/photo
	$(RUN) -m $(PHOTO) method=$(SCHEDULES) keep=0.25 runs=$(NEW)/photo
	$(RUN) -m $(PHOTO) method=pyramiddrop method.budget_at=end keep=0.25,0.1,0.05 runs=$(NEW)/photo
	$(RUN) -m $(PHOTO) method=sparsevlm method.budget_at=end keep=0.25,0.1,0.05 runs=$(NEW)/photo
	$(BIN)/python -m harness.export runs=$(NEW)/photo archive=$(RUNS)
	$(TABLES) runs=$(RUNS)/pocket_photo/photo csv=results/pocket/photo.csv
	$(TABLES) runs=$(RUNS)/pocket_photo/photo_blank csv=results/pocket/photo_blank.csv
	$(TABLES) runs=$(RUNS)/pocket_photo/photo_unseen csv=results/pocket/photo_unseen.csv
	$(TABLES) source=paper csv=$(NEW)/paper.csv
	$(BIN)/python scripts/rank_agreement.py results/pocket/photo.csv $(NEW)/paper.csv results/pocket/table.csv >results/pocket/agreement.md

results-llava: .venv/.installed
	$(RUN) method=none model=pocket_llava tasks=pocket_image_blank runs=$(NEW)/llava
	$(RUN) -m $(LLAVA) method=$(METHODS) keep=0.25,0.1 runs=$(NEW)/llava
	$(RUN) -m $(LLAVA) method=$(SCHEDULES) keep=0.25 runs=$(NEW)/llava
	$(RUN) -m $(LLAVA) method=pyramiddrop method.budget_at=end keep=0.25,0.1 runs=$(NEW)/llava
	$(RUN) -m $(LLAVA) method=sparsevlm method.budget_at=end keep=0.25,0.1 runs=$(NEW)/llava
	$(RUN) -m $(LLAVA) method=random seed=1,2 keep=0.25,0.1 runs=$(NEW)/llava
	$(BIN)/python -m harness.export runs=$(NEW)/llava archive=$(RUNS)
	$(TABLES) runs=$(RUNS)/pocket_llava/pocket_image csv=results/pocket/llava.csv
	$(TABLES) runs=$(RUNS)/pocket_llava/pocket_image_blank csv=results/pocket/llava_blank.csv

# Methods that compare frames beside some that do not, on clips; the latter on places.
TEMPORAL := evs,vidcom2,dycoke,fastvid,holitom,flashvid,prunevid
FRAMEWISE := random,uniform,greedy,idpruner,fps,visionzip,fastv
CLIP := model=pocket_clip
results-clips: .venv/.installed
	$(RUN) -m $(CLIP) method=none tasks=pocket_clips_blank,pocket_places_blank runs=$(NEW)/clips
	$(RUN) -m $(CLIP) tasks=pocket_clips method=$(TEMPORAL),$(FRAMEWISE) keep=0.25,0.1 runs=$(NEW)/clips
	$(RUN) -m $(CLIP) tasks=pocket_places method=$(FRAMEWISE),divprune,dart keep=0.25,0.1 runs=$(NEW)/clips
	$(BIN)/python -m harness.export runs=$(NEW)/clips archive=$(RUNS)
	$(TABLES) runs=$(RUNS)/pocket_clip/pocket_clips csv=results/pocket/clips.csv
	$(TABLES) runs=$(RUNS)/pocket_clip/pocket_places csv=results/pocket/places.csv
	$(TABLES) runs=$(RUNS)/pocket_clip/pocket_clips_blank csv=results/pocket/clips_blank.csv
	$(TABLES) runs=$(RUNS)/pocket_clip/pocket_places_blank csv=results/pocket/places_blank.csv

# What the methods cost, for pictures of the mean size of the suite.
COSTS := $(BIN)/python -m harness.bench flops keep=[0.25,0.1]
AT_END := 'methods=[{name:pyramiddrop,budget_at:end},{name:sparsevlm,budget_at:end}]'
results-costs: .venv/.installed
	$(COSTS) model=pocket methods=all sizes=[104] out=results/pocket/cost/pocket
	$(COSTS) model=pocket $(AT_END) sizes=[104] out=results/pocket/cost/pocket_end
	$(COSTS) model=pocket_llava methods=all sizes=[256] out=results/pocket/cost/llava
	$(COSTS) model=pocket_llava $(AT_END) sizes=[256] out=results/pocket/cost/llava_end
	$(BIN)/python scripts/cost_table.py results/pocket/table.csv results/pocket/cost/pocket*.csv >results/pocket/cost/pocket.md
	$(BIN)/python scripts/cost_table.py results/pocket/llava.csv results/pocket/cost/llava*.csv >results/pocket/cost/llava.md

results: results-pocket results-photo results-llava results-clips results-costs
	$(REPORT) runs=$(NEW)
	$(REPORT) runs=$(RUNS)
	rm -rf results/pocket/last
	mv $(NEW) results/pocket/last

# Of committed runs the answers are gone: the sample holds those that the page shows, with what they kept.
REPORT := $(BIN)/python -m harness.report sample=results/pocket/sample.json
REPORT += $(patsubst %,prefill=%,$(wildcard results/pocket/times))
report: .venv/.installed
	$(REPORT) runs=$(RUNS)

.venv/bin/python .venv-lowest/bin/python .venv-newest/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(@:/bin/python=)

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv: 7 GB, some minutes"
	$(BIN)/pip install -qq -c constraints.txt -e .
	touch $@

.venv/.installed-test: pyproject.toml constraints.txt .venv/.installed | .venv/bin/python
	$(BIN)/pip install -qq -c constraints.txt -e ".[test,pocket]"
	touch $@

TEST_TOOLS := pytest pytest-xdist hypothesis
.venv-lowest/.installed: pyproject.toml constraints-lowest.txt | .venv-lowest/bin/python
	.venv-lowest/bin/pip install -qq -c constraints-lowest.txt -e . $(TEST_TOOLS)
	touch $@

# The project comes without its dependencies, since these have upper bounds.
.venv-newest/.installed: pyproject.toml scripts/bounds.py | .venv-newest/bin/python
	.venv-newest/bin/python scripts/bounds.py newest >.venv-newest/requirements.txt
	.venv-newest/bin/pip install -qq --upgrade -r .venv-newest/requirements.txt $(TEST_TOOLS)
	.venv-newest/bin/pip install -qq --no-deps -e .
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
