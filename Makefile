# Two commands do everything:  make train   make test
PY     ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
STAMP  := $(shell date +%Y%m%d-%H%M%S)
OUT    ?= runs/$(STAMP)
METHOD ?= pinmem
MINUTES ?= 7.5
comma  := ,

.PHONY: train test browser lab check docs book compare adaptation laboratory openset clean
.DELETE_ON_ERROR:

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

train: $(READY)            ## draw streets, train for at most $(MINUTES) minutes, evaluate, write $(OUT)/report.html
	$(BIN)/pinmem train --method $(METHOD) --minutes $(MINUTES) --out $(OUT)

test: $(READY) check browser ## in-step check, every notebook, pytest
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup tests

APT    := DEBIAN_FRONTEND=noninteractive apt-get
browser:                   ## Debian's chromium for the tests in a browser, once, where it may be installed
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing chromium for the tests in a browser, once"; \
		{ $(APT) -qq update && $(APT) -qq install -y --no-install-recommends chromium >/dev/null; } || \
			echo "chromium could not be installed: the tests in a browser will be skipped"; \
	else echo "no chromium here: the tests in a browser will be skipped; install it with: apt install chromium"; fi

lab: $(READY)              ## open the notebooks
	$(BIN)/jupyter lab nbs

check: $(READY)            ## modules and README are what the notebooks generate
	$(BIN)/python tests/in_step.py

docs: $(READY)             ## generate pinmem/*.py and README.md from the notebooks
	$(BIN)/python tests/in_step.py --write

book: $(READY)             ## the notebooks as pages, with search and an API: open _docs/index.html
	@$(BIN)/python -c "import material, mathjax, mkdocstrings_handlers.python" 2>/dev/null || { \
		echo "the book needs packages that are not installed here; get them with: $(BIN)/pip install -c constraints.txt -e '.[book]'"; exit 2; }
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file nbs/book/mkdocs.yml
	@echo "_docs/index.html"

clean:
	rm -rf $(VENV) _docs build dist *.egg-info

SEEDS  ?= 0,1,2,3,4
METHODS ?= aggregation,pinmem,pinmem+
CAMVID ?=
SOURCES := town,suburb,city,winter,rendered
UNSEEN := night,fog,rain,glare,desert
compare: $(READY)          ## three methods, five seeds; goes on where it was stopped; CAMVID=FOLDER adds photographs
	$(BIN)/pinmem compare --methods $(METHODS) --seeds $(SEEDS) --processes 2 --targets $(UNSEEN)$(if $(CAMVID),$(comma)camvid:$(CAMVID))

ADAPT   := --processes 2 --steps 200 --scenes 100 --exam 20 --seeds $(SEEDS) --photos $(CAMVID)/train --targets fog,night,camvid:$(CAMVID)/test
ONE     := $(ADAPT) --lr 1e-3 --begin 'runs/compare/pinmem-default-{seed}-*'
adaptation: $(READY)       ## methods that adapt, five seeds, from the runs of `make compare`; CAMVID=FOLDER with train/ and test/
	@test -n "$(CAMVID)" || { echo "name the photographs: make adaptation CAMVID=FOLDER, with train/ and test/ in it"; exit 2; }
	$(BIN)/pinmem compare --methods source-only,bn-only,norm-only,max-square,min-entropy,adaptsegnet,self-training,self-training-memory,max-square+norm $(ONE) --out runs/adapt
	$(BIN)/pinmem compare --methods norm-only --setting 'kappa=1 fade_norm=0' $(ONE) --out runs/adapt
	$(BIN)/pinmem compare --methods max-square --setting lam_square=1.9 $(ONE) --out runs/adapt
	$(BIN)/pinmem compare --methods adaptsegnet --setting lam_adv=0.03 $(ONE) --out runs/adapt
	$(BIN)/pinmem compare --methods source-only,self-training $(subst --steps 200,--steps 900,$(ONE)) --out runs/adapt-long
	$(BIN)/pinmem compare --methods aggregation --head twoheads --output-stride 16 --seeds $(SEEDS) --processes 2 --out runs/twoheads
	$(BIN)/pinmem compare --methods source-only,bn-only,clan,clan+norm $(ADAPT) \
		--begin 'runs/twoheads/aggregation-default-{seed}-*' --out runs/adapt-twoheads
	$(BIN)/pinmem compare --methods source-only $(ONE) --out runs/adapt-labels --sources $(SOURCES),camvid:$(CAMVID)/train

LAB     ?= runs/laboratory.pt
LENGTHS ?= 200,600,1000,3000
LAB_METHODS ?= aggregation,aggregation-memory,mldg-first,mldg,episodic-memory,pinmem,pinmem+
LAB_OUT ?= nbs/results/laboratory.jsonl
LAB_COMPILED ?= None
LAB_MORE ?=
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=200000000  # 15 % faster: no page is given back
laboratory: SEEDS := $(if $(filter file,$(origin SEEDS)),$(shell seq -s, 0 19),$(SEEDS))
laboratory: $(READY)       ## the study of nbs/27_laboratory: methods x 20 seeds x lengths on features in LAB; goes on where it was stopped; LAB_MORE: more of run_study
	mkdir -p $(dir $(LAB))
	$(KEEP_MEMORY) OMP_NUM_THREADS=1 $(BIN)/python -c "from pinmem.at_size import compiled_step; from pinmem.laboratory import *; run_study(\
		open_lab('$(LAB)'$(if $(CAMVID),$(comma) photos={'camvid': 'camvid:$(CAMVID)'})), '$(LAB_OUT)', \
		'$(LAB_METHODS)'.split(','), [$(SEEDS)], [$(LENGTHS)], compiled=$(LAB_COMPILED), $(LAB_MORE))"

OPEN_OUT ?= nbs/results/open_set.jsonl
openset: SEEDS := $(if $(filter file,$(origin SEEDS)),$(shell seq -s, 0 2),$(SEEDS))
openset: $(READY)          ## the study of nbs/54_open_set: methods x classes left out x 3 seeds on features in LAB; goes on where it was stopped
	mkdir -p $(dir $(LAB))
	$(KEEP_MEMORY) OMP_NUM_THREADS=1 $(BIN)/python -c "from pinmem.laboratory import open_lab; from pinmem.open_set import open_study; \
		open_study(open_lab('$(LAB)'$(if $(CAMVID),$(comma) photos={'camvid': 'camvid:$(CAMVID)'})), '$(OPEN_OUT)', seeds=[$(SEEDS)])"
