"""Fine-tune a chat model on one author's replies: base model in NF4, LoRA, loss on the reply only.

  python train.py --base-model models/SmolLM2-135M-Instruct \\
                  --train-data data/sample/maud_okafor_train_43.jsonl --output-dir runs/try/maud
  python train.py --base-model meta-llama/Llama-2-7b-chat-hf \\
                  --train-data data/experience1/jeff_dasovich_train_625.jsonl --output-dir runs/jj

Prints its settings, the first example with the trained part marked, the validation losses, and
last the folder it wrote: adapter/, log/, loss_curve.png, training_duration.txt and, when all is
done, train.json. The first command takes a minute on two CPU cores, the second hours on a GPU;
`make model data/sample/maud_okafor_train_43.jsonl` makes what the first one reads.
The same command continues an interrupted training and leaves a finished one as it is.
"""

import argparse
import bisect
import contextlib
import datetime
import fcntl
import functools
import gc
import hashlib
import inspect
import json
import logging
import math
import os
import platform
import re
import resource
import shutil
import sys
import threading
import time
import warnings
from importlib.metadata import version
from pathlib import Path

# With a GPU: the settings published for 7B models (QLoRA, arXiv:2305.14314, appendix B.2), for the
# study's three epochs. Without: chosen for the embedded model on validation mail. Without a GPU
# and --epochs there are two, and up to four where the data is so small that they make few updates.
LEAST_UPDATES = 24
DEFAULTS = {  # GPU, CPU
    "epochs": (3.0, 2.0),
    "learning_rate": (2e-4, 1e-3),
    "batch_size": (16, 4),
    "rank": (64, 16),
    "alpha": (16.0, 32.0),
    "dropout": (0.1, 0.0),
    "max_length": (2048, 512),
    "max_reply_length": (512, 192),
    "micro_batch_size": (4, 1),  # 4 examples of 2,048 tokens fit a T4 with Llama 2
    "gradient_checkpointing": ("on", "off"),
}
# These leave the result as it is; of the data its hash decides, not its name.
FREE_TO_CHANGE = {"train_data", "start_from", "micro_batch_size", "gradient_checkpointing"}
NO_MODEL = (
    "cannot load {}: no such folder (`make model` makes the embedded model's), and from the hub it "
    "needs a network and, if gated, `hf auth login`"
)
FULL_DISK = ("No space left", "inline_container")  # in the errors of several libraries
FULL_MEMORY = ("out of memory", "can't allocate memory")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch in pages of 2 MB: faster on a CPU
HERE = Path(__file__).resolve().parent
RANK = int(os.environ.get("RANK", "0"))  # of several processes, by torchrun or accelerate
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def main(argv=None):
    os.umask(0o077)  # private mail, and a model made of it, are for their owner only
    # With the package kernels the libraries would download code and run it; bitsandbytes wants it.
    sys.modules["kernels"] = None
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    args = parse_args(argv)
    nowhere = open(os.devnull, "w", encoding="utf-8")
    if RANK:  # only the first of several processes prints
        sys.stdout = nowhere
    rows = read_jsonl(args.train_data, answered=True)[: args.limit]
    settings = fill_defaults(args, rows)
    with lock(args.output_dir):
        refuse_another(args.output_dir, settings)
        if (args.output_dir / "train.json").exists():
            return confirm(args.output_dir)
        if not RANK:
            write(args.output_dir / "settings.json", json.dumps(settings, indent=1))
        if sys.stderr.isatty():
            print("loading the libraries and the model", file=sys.stderr)
        tokenizer, stop = load_tokenizer(find_model(args.base_model), settings)
        examples = [make_example(tokenizer, row, settings) for row in rows]
        train_set, validation_set = split(examples, settings["validation_fraction"])
        with contextlib.redirect_stdout(nowhere if args.brief else sys.stdout):
            show(settings, tokenizer, train_set, validation_set)
            model, history, seconds = fit(train_set, validation_set, settings, args.output_dir)
        if not RANK:
            save_adapter(model, tokenizer, stop, settings, args.output_dir)
            finish(train_set, validation_set, history, seconds, settings, args.output_dir)


def parse_args(argv):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.error = die  # one line, without the usage

    def add(group, name, kind, text, **how):
        if name in DEFAULTS:
            text += f" (default {DEFAULTS[name][0]} with a GPU, {DEFAULTS[name][1]} without)"
        group.add_argument("--" + name.replace("_", "-"), type=kind, help=text, **how)

    files = parser.add_argument_group("files")
    add(files, "base_model", str, "chat model: a folder or a name on the hub", required=True)
    add(files, "train_data", Path, "JSONL of `prepare_data.py format`", required=True)
    add(files, "output_dir", Path, "run folder, runs/GROUP/NAME", required=True)
    add(files, "start_from", Path, "run whose adapter is trained on (default a new adapter)")
    add(files, "limit", int, "train on the first LIMIT rows (default all)")
    files.add_argument("--brief", action="store_true", help="print one line; train.json has it all")
    method = parser.add_argument_group("method")
    text = f"passes over the data; without a GPU up to 4 for {LEAST_UPDATES} updates"
    add(method, "epochs", float, text)
    add(method, "learning_rate", float, "peak of the cosine schedule")
    add(method, "batch_size", int, "examples per update")
    add(method, "rank", int, "rank of the LoRA matrices")
    add(method, "alpha", float, "LoRA's scale times the rank")
    add(method, "dropout", float, "dropout on LoRA's input")
    add(method, "max_length", int, "tokens of an example; a longer mail loses its end")
    add(method, "max_reply_length", int, "tokens of its reply; the prompt has the others")
    add(method, "validation_fraction", float, "(default %(default)s of the rows)", default=0.05)
    add(method, "seed", int, "(default %(default)s)", default=42)
    machine = parser.add_argument_group("machine")
    nf4 = {"choices": ["4bit", "none"], "default": "4bit"}
    add(machine, "quantization", str, "of the base model, to NF4 (default %(default)s)", **nf4)
    kinds = {"choices": ["auto", "float32", "bfloat16", "float16"], "default": "auto"}
    text = "numbers of the base model: auto, what this machine is built for (default)"
    add(machine, "dtype", str, text, **kinds)
    add(machine, "micro_batch_size", int, "examples per pass: changes the memory, not the result")
    on_off = {"choices": ["on", "off"]}
    add(machine, "gradient_checkpointing", str, "slower with less memory", **on_off)
    return parser.parse_args(argv)


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"{Path(__file__).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def read_jsonl(path, answered=False):
    """The rows of a file: {"id": str, "prompt": [turn, ...], "completion": [turn]}.

    A turn is {"role": "system" or "user" or "assistant", "content": str}. A mail to be answered
    has no completion; `answered` refuses it.
    """
    if not path.is_file():
        die(f"{path}: no such file; `prepare_data.py format` makes it")
    rows = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            turns = row["prompt"] + row.get("completion", [])
            texts = [row.get("notes") or "", *(turn["content"] for turn in turns)]
            "".join(texts).encode()  # half a surrogate pair is no text
            roles = [turn["role"] for turn in turns]  # a template writes them as they are
            known = {*roles} <= {"system", "user", "assistant"} and isinstance(row["id"], str)
            if not known or row["prompt"][-1]["role"] != "user":
                raise ValueError
            if answered or "completion" in row:
                (reply,) = row["completion"]
                if reply["role"] != "assistant" or not reply["content"].strip():
                    raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            die(f"{path}, line {number}: not a row of `prepare_data.py format`")
        if row["id"] in rows:
            die(f"{path}, line {number}: the id {row['id']} is there twice")
        rows[row["id"]] = row
    if not rows:
        die(f"{path}: no rows")
    return list(rows.values())


def fill_defaults(args, rows):
    """All that decides the result in one dict: flags, the hardware's defaults, the data's hash."""
    import torch

    settings = dict(vars(args))
    del settings["output_dir"], settings["brief"]
    for name, (with_gpu, without) in DEFAULTS.items():
        if settings[name] is None:
            settings[name] = with_gpu if torch.cuda.is_available() else without
    if args.epochs is None and not torch.cuda.is_available():
        updates = math.ceil(len(rows) / max(1, settings["batch_size"]))  # of an epoch
        settings["epochs"] = float(min(4, max(2, math.ceil(LEAST_UPDATES / updates))))
    limits = {"seed": (0, 2**31 - 1), "dropout": (0, 0.99), "validation_fraction": (0, 0.5)}
    for name, value in settings.items():
        low, high = limits.get(name, (1 if isinstance(value, int) else 1e-12, 1e12))
        if isinstance(value, int | float) and not low <= value <= high:
            die(f"--{name.replace('_', '-')} {value} is not in {low:g} to {high:g}")
    room = settings["max_length"] - settings["max_reply_length"]
    if room < 1:
        die(f"--max-length {settings['max_length']} leaves no room beside --max-reply-length")
    if settings["batch_size"] % WORLD:
        die(f"--batch-size {settings['batch_size']} is no multiple of the {WORLD} processes")
    plain = next((row for row in rows if not row.get("notes")), rows[0])
    system = plain["prompt"][0]
    instruction = system["content"].strip() if system["role"] == "system" else ""
    settings |= {
        "max_prompt": room,  # the same in generation, whatever the reply
        "train_data": str(args.train_data),
        "train_data_sha256": hashlib.sha256(args.train_data.read_bytes()).hexdigest(),
        "instruction": instruction.removesuffix(f"In the reply: {plain.get('notes')}").rstrip(),
    }
    if Path(args.base_model).is_dir():  # so that it is found from any folder
        # models/ may be a link to another disk
        places = Path(os.path.abspath(args.base_model)), Path(args.base_model).resolve()
        inside = [place.relative_to(HERE) for place in places if place.is_relative_to(HERE)]
        settings["base_model"] = str((*inside, places[1])[0])
    if args.dtype == "auto":
        settings["dtype"] = native_type()
    if settings["dtype"] == "float16" and not torch.cuda.is_available():
        die("--dtype float16 wants a GPU: take bfloat16 or float32")
    settings["start_from_sha256"] = None
    if args.start_from:
        settings |= read_start(args.start_from, settings)
    return settings


def read_start(run, settings):
    """Which adapter the training starts from; die where it is not one of the same shape."""
    weights = run / "adapter" / "adapter_model.safetensors"  # PEFT would take others, too
    try:
        old = {} | json.loads((run / "train.json").read_bytes())
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError):
        die(f"--start-from {run}: no finished training is there")
    for name in ("base_model", "rank", "alpha"):
        if old.get(name) != settings[name]:
            change = f"{old.get(name)!r}, not {settings[name]!r}: give the same"
            die(f"--start-from {run}: its --{name.replace('_', '-')} is {change}")
    return {"start_from": str(run), "start_from_sha256": digest}


@contextlib.contextmanager
def lock(run):
    """Hold the run folder; die where another process does. What a killed one held is free."""
    run.mkdir(parents=True, exist_ok=True)
    folder = os.open(run, os.O_RDONLY)
    try:
        if not RANK:  # for all processes of a launch
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        die(f"{run}: another process trains here; wait for it, then the same command continues")
    finally:
        os.close(folder)


def refuse_another(run, settings):
    """Die where the run folder holds another training; a start that failed claims nothing."""
    done = (run / "train.json").exists()
    if not done and not (run / "checkpoints").exists():
        return
    file = run / ("train.json" if done else "settings.json")
    try:
        old = {} | json.loads(file.read_bytes())
    except (ValueError, TypeError):
        die(f"{file}: not JSON; choose another folder")
    changes = [
        f"{name} {old.get(name)!r} -> {settings[name]!r}"
        for name in settings
        if name not in FREE_TO_CHANGE and old.get(name) != settings[name]
    ]
    if changes:
        die(f"{run} holds another training ({', '.join(changes)}): choose another folder")


def confirm(run):
    """Leave a finished training as it is, but newer than its data again, for make."""
    tidy(run)  # a kill may have come before
    os.utime(run / "train.json")
    print(f"{run / 'train.json'} is there with these settings: nothing to be done")


def tidy(run):
    """Remove what a finished training no longer needs: train.json has the settings."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "settings.json").unlink(missing_ok=True)


def write(path, text):
    """Write a text file whole or not at all."""
    side = path.with_name(path.name + ".part")
    side.write_text(text, encoding="utf-8")
    os.replace(side, path)


def find_model(name):
    """The folder of a base model: the one named, or the hub's, downloaded once.

    The hub is asked only for what is not in its cache: who asks at every start tells it who works
    when, and may get another model.
    """
    if (HERE / name).is_dir():  # a run knows its base model by its place in this folder
        name = HERE / name
    elif not Path(name).is_dir():
        if Path(name).is_absolute():  # no name on the hub
            die(NO_MODEL.format(name))
        from huggingface_hub import snapshot_download

        unused = ["*/*", "*.bin", "*.pth", "*.gguf", "consolidated*"]  # other formats
        fetch = functools.partial(snapshot_download, name, ignore_patterns=unused)
        try:
            name = fetch(local_files_only=True)
        except Exception:  # not there, or not whole: the next call says why if it fails, too
            name = attempt(NO_MODEL.format(name), fetch)
    if Path(name, "adapter_config.json").is_file():
        die(f"{name} is an adapter: name its base model, or the folder of `generate.py --export`")
    if not Path(name, "config.json").is_file():
        die(f"cannot load {name}: it has no config.json, so it is no model")
    return str(Path(name).resolve())


def attempt(failure, function, *args, **how):
    """What a library's function returns; its errors, each has its own kinds, end in one line."""
    try:
        return function(*args, **how)
    except Exception as error:
        if any(words in str(error) for words in FULL_DISK + FULL_MEMORY):
            raise
        die(f"{failure} ({next(iter(str(error).strip().splitlines()), type(error).__name__)})")


def load_tokenizer(folder, settings):
    """(tokenizer with the finished template, ids that end a reply).

    Adds to the settings what the template writes before a reply and after it.
    """
    from transformers import AutoTokenizer, GenerationConfig

    failure = f"cannot load the tokenizer of {folder}"
    tokenizer = attempt(failure, AutoTokenizer.from_pretrained, folder)
    templates = tokenizer.chat_template or {}
    templates = {"default": templates} if isinstance(templates, str) else templates
    usable = {name: text for name, text in templates.items() if name not in ("tool_use", "rag")}
    if not usable:
        die(f"{folder} has no chat template: take a chat model, often named -chat or -Instruct")
    if "default" not in usable and len(usable) > 1:
        die(f"{folder} has several chat templates and no default: {', '.join(sorted(usable))}")
    template = usable.get("default") or next(iter(usable.values()))

    eos = {tokenizer.eos_token_id}
    if (Path(folder) / "generation_config.json").is_file():  # Phi-3, Qwen 2.5, Llama 3: several
        ids = attempt(failure, GenerationConfig.from_pretrained, folder).eos_token_id
        eos |= set(ids) if isinstance(ids, list) else {ids}
    eos -= {None}
    start, end = finish_template(tokenizer, template, settings["instruction"], eos)
    settings |= {"reply_start": start, "reply_end": end}
    return tokenizer, sorted(eos | {tokenize(tokenizer, end)[-1]})


# Jinja in front of a base model's chat template: no thoughts, and one date on every day; where the
# template refuses or loses a system message, its text in the first mail.
DAY = datetime.date(2024, 7, 26)
DATE = "".join(f"|replace('%{code}', '{DAY:%{code}}')" for code in "aAbBdmyYHIMSpj")
FIXED = (
    "{% set enable_thinking = false %}{% set thinking = false %}"
    "{% set date_string = '26 Jul 2024' %}"
    "{% macro strftime_now(format) %}{{ format" + DATE + " }}{% endmacro %}"
)
FOLDED = (
    "{% if messages[0]['role'] == 'system' %}{% set messages = [{'role': 'user', 'content': "
    "messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)


def finish_template(tokenizer, template, instruction, eos):
    """Set the tokenizer's chat template to the base model's own, finished for this run.

    It says the instruction where a conversation has no system message, keeps thoughts off and the
    date fixed, and puts the system text in front of the first user turn where the base model's
    refuses or loses it. Returns the texts before and after a reply, the latter up to its end of
    turn. `eos`: the ids that the base model stops at.
    """
    opening = FIXED
    if instruction:
        system = quote({"role": "system", "content": neutralise(tokenizer, instruction)})
        opening += "{% if messages[0]['role'] != 'system' %}"
        opening += "{% set messages = [" + system + "] + messages %}{% endif %}"
    roles = ("system", "user", "assistant", "user")
    turns = [{"role": role, "content": f"{role.upper()}{n}"} for n, role in enumerate(roles)]
    for start in (opening, opening + FOLDED):
        tokenizer.chat_template = start + "\n" + template
        prompt, whole, later = (render(tokenizer, turns[:n]) for n in (2, 3, 4))
        if all(-1 < text.find("SYSTEM0") < text.find("USER1") for text in (prompt, whole, later)):
            break
    if "USER1" not in prompt or whole.count("ASSISTANT2") != 1:
        die(f"the chat template of {tokenizer.name_or_path} loses the text of a mail or a reply")

    if tokenizer.bos_token and not prompt.startswith(tokenizer.bos_token):
        tokenizer.add_bos_token = False  # or an export's reader would put one in front

    before, after = whole.split("ASSISTANT2")
    start = before.removeprefix(prompt)
    if start == before:  # a history is written in another way than what is to be answered
        thought = re.search(r"<(\w*think\w*)>\s*$", prompt)
        start = f"\n</{thought[1]}>\n\n" if thought else ""
    if start.strip():  # the end of an empty thought, or a channel: it belongs to the prompt
        closing = "{% if add_generation_prompt %}{{ " + quote(start) + " }}{% endif %}"
        tokenizer.chat_template = tokenizer.chat_template.removesuffix("\n") + closing
        start = ""

    return start, end_of_turn(tokenizer, after, later.partition("ASSISTANT2")[2], eos)


def end_of_turn(tokenizer, after, later, eos):
    """What ends a reply, by the texts behind it: as the last turn, and with another one to come."""
    pattern = controls(tokenizer)[1]
    if end := pattern.search(after):
        return after[: end.end()]
    end = pattern.search(later)
    if end and tokenizer.convert_tokens_to_ids(end[0]) in eos:  # GLM-4: the head of the next turn
        return later[: end.end()]
    if not eos:
        die(f"the chat template of {tokenizer.name_or_path} ends a reply with no control token")
    return tokenizer.convert_ids_to_tokens(min(eos))


def quote(value):
    """A value as Jinja writes it."""
    return json.dumps(value, ensure_ascii=False)


def render(tokenizer, turns):
    """The text of a conversation, and the head of a reply to it where the last turn is the user's.

    Empty where the template refuses it.
    """
    asked = turns[-1]["role"] == "user"
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asked)
    except Exception:  # a template is a program of the model's makers, and may raise anything
        return ""


def tokenize(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@functools.cache
def controls(tokenizer):
    """(ids of the control tokens, pattern of their texts)."""
    tokens = {
        id: token
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.special or re.fullmatch(r"[<\[].*[>\]]", token.content)
    }
    texts = {token.content for token in tokens.values()} | set(tokenizer.all_special_tokens)
    texts |= {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}  # plain text in Llama 2
    pattern = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    ids = tokens.keys() | set(tokenizer.all_special_ids)
    return ids - {tokenizer.unk_token_id}, re.compile(pattern)


def neutralise(tokenizer, text):
    """Break each control token's text by a space, "<|im_end|>" to "< |im_end|>": mail is data."""
    ids, pattern = controls(tokenizer)
    text = pattern.sub(lambda match: match[0][0] + " " + match[0][1:], text)
    if ids & set(tokenize(tokenizer, text)):  # said in letters that the tokenizer takes for these
        text = re.sub(r"[^\w\s]", " ", text)
    return text.strip()


def encode_prompt(tokenizer, row, room):
    """(text, ids, whether the mail was cut) of a row's prompt in at most `room` tokens.

    A mail too long for it loses its end: the newest text comes first.
    """
    *turns, mail = [
        turn | {"content": neutralise(tokenizer, turn["content"])} for turn in row["prompt"]
    ]
    text = mail["content"]

    def prompt(length):
        rendered = render(tokenizer, [*turns, mail | {"content": text[:length].rstrip()}])
        if not rendered:
            die(f"row {row['id']}: the chat template of {tokenizer.name_or_path} refuses its turns")
        return rendered, tokenize(tokenizer, rendered)

    rendered, ids = prompt(len(text))
    if len(ids) <= room:
        return rendered, ids, False
    length = bisect.bisect_right(range(len(text)), room, key=lambda n: len(prompt(n)[1])) - 1
    if length < 1:
        more = "shorten its notes, or train with a larger --max-length"
        die(f"row {row['id']}: no room for the mail in {room} tokens: {more}")
    return *prompt(length), True


def encode_reply(tokenizer, row, prompt, prompt_ids, settings):
    """The ids of a row's reply with its end of turn, behind a prompt's text and ids."""
    reply = neutralise(tokenizer, row["completion"][-1]["content"])
    reply = settings["reply_start"] + reply + settings["reply_end"]
    ids = tokenize(tokenizer, prompt + reply)
    if ids[: len(prompt_ids)] != prompt_ids:  # a token across the border, unseen in generation
        return tokenize(tokenizer, reply)
    return ids[len(prompt_ids) :]


def make_example(tokenizer, row, settings):
    """{"input_ids", "length", "reply": how many ids are trained on, at the end, ...}.

    A long reply loses its end, but keeps its end of turn.
    """
    prompt, prompt_ids, mail_cut = encode_prompt(tokenizer, row, settings["max_prompt"])
    *reply, end = encode_reply(tokenizer, row, prompt, prompt_ids, settings)
    target = [*reply[: settings["max_reply_length"] - 1], end]
    cut = {"mail_cut": mail_cut, "reply_cut": len(target) <= len(reply)}
    ids = prompt_ids + target
    return {"input_ids": ids, "length": len(ids), "reply": len(target)} | cut


def split(examples, fraction):
    """(training, validation) examples: every k-th is for validation, so that parts are nested."""
    k = round(1 / fraction) if fraction else len(examples) + 1
    return [example for n, example in enumerate(examples, 1) if n % k], examples[k - 1 :: k]


def show(settings, tokenizer, train_set, validation_set):
    """Print the settings, the size of the data, and the first example."""
    import torch

    gpu = torch.cuda.is_available()
    print(f"train.py on {torch.cuda.get_device_name() if gpu else 'the CPU (no NVIDIA GPU)'}")
    print("\n".join(f"  {name}: {value!r}" for name, value in settings.items()))
    names = ("length", "reply", "mail_cut", "reply_cut")
    tokens, trained, mails, replies = (sum(row[name] for row in train_set) for name in names)
    print(f"{len(train_set)} training rows: {tokens:,} tokens, {trained:,} of them trained on")
    print(f"{len(validation_set)} validation rows; {mails} mails and {replies} replies were cut")
    ids, n = train_set[0]["input_ids"], train_set[0]["reply"]
    print("the first, its trained part between >>> and <<<:")
    print(f"{tokenizer.decode(ids[:-n])}>>>{tokenizer.decode(ids[-n:])}<<<")


def fit(train_set, validation_set, settings, run):
    """(trained model, log, seconds); with half as many examples per pass when a GPU is full."""
    import torch

    while True:
        model = load_model(settings)
        try:
            return model, *train(model, train_set, validation_set, settings, run)
        except torch.OutOfMemoryError:
            if settings["micro_batch_size"] == 1 or WORLD > 1:  # the other processes would wait
                raise
        settings["micro_batch_size"] //= 2
        print(f"out of memory: again with --micro-batch-size {settings['micro_batch_size']}")
        del model
        gc.collect()
        torch.cuda.empty_cache()


def load_model(settings):
    """The base model with a fresh LoRA adapter on its linear layers."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    from peft import set_peft_model_state_dict as read_back
    from transformers import set_seed

    model = load_base(settings)
    probe = torch.ones(2, 4, dtype=torch.long, device=model.device)  # now, not after hours
    options = {"attention_mask": probe, "max_new_tokens": 2, "pad_token_id": 0}
    failure = f"{settings['base_model']} cannot write a reply with these libraries"
    attempt(failure, model.generate, probe, do_sample=False, **options)
    if settings["gradient_checkpointing"] == "on":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()  # or no gradient passes the frozen embeddings
    set_seed(settings["seed"])  # before LoRA draws its random matrices
    modules = dict(model.named_modules())
    linear = [module for module in modules.values() if isinstance(module, torch.nn.Linear)]
    if len({id(layer.weight) for layer in linear}) < len(linear):  # merged, all would add up
        die(f"{settings['base_model']} takes no adapter: its layers share weights")
    special = ("Router", "GroupedLinear")  # linear layers whose output has another shape
    exclude = [name for name, module in modules.items() if type(module).__name__.endswith(special)]
    if any(name.endswith("conv1d") for name in modules):  # Mamba's kernels read past LoRA
        exclude += ["out_proj", "conv1d"]
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        exclude_modules=exclude or None,
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
    )
    failure = f"{settings['base_model']} takes no adapter with these libraries"
    if settings["start_from"]:
        failure = f"--start-from {settings['start_from']}: its adapter cannot be read"
        adapter, how = Path(settings["start_from"]) / "adapter", {"is_trainable": True}
        model = attempt(failure, PeftModel.from_pretrained, model, adapter, config=lora, **how)
    else:
        model = attempt(failure, get_peft_model, model, lora)
    lost = read_back(model, get_peft_model_state_dict(model)).missing_keys
    if any("lora_" in name for name in lost):  # now, not after hours
        die(f"{settings['base_model']} takes no adapter: PEFT does not read all of it back")
    model.print_trainable_parameters()
    return model


def load_base(settings):
    """The base model on this process's device, in NF4 where asked for.

    Adds to the settings how much of it bitsandbytes has passed over.
    """
    import psutil
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoConfig

    quieten()
    folder, nf4 = find_model(settings["base_model"]), settings["quantization"] == "4bit"
    config = attempt(f"cannot load {folder}", AutoConfig.from_pretrained, folder)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    if 0 < positions < settings["max_length"]:
        die(f"--max-length {settings['max_length']} is more than the model's {positions} positions")
    if getattr(config, "quantization_config", None) and not nf4:
        die(f"{folder} is quantized already: leave out --quantization none")
    model = load_weights(folder, nf4, settings["dtype"])
    if not nf4:
        return model
    if not any(isinstance(module, Linear4bit) for module in model.modules()):
        die(f"no layer of {folder} can be held in 4 bits: take --quantization none")
    experts = [p.nbytes for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name]
    settings["experts_not_in_4bit_gb"] = round(sum(experts) / 1e9, 3)
    if experts:
        print(f"the experts are not held in 4 bits: {settings['experts_not_in_4bit_gb']} GB")
    free = psutil.virtual_memory().available
    if model.device.type == "cpu" and 16 * model.num_parameters() < free:
        model = model.dequantize()  # the same rounded weights, faster on a CPU
    for module in model.modules():  # or a pass without gradient takes NF4 layers into a layout
        module.support_avx512bf16_for_cpu = False  # that has none (bitsandbytes 0.50)
    return model


def load_weights(folder, nf4, dtype):
    """The model of a folder on this process's device, its numbers as `dtype` or, of it, in NF4."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = LOCAL_RANK if torch.cuda.is_available() else "cpu"
    how = {"dtype": dtype, "device_map": {"": device}, "use_safetensors": True}
    if nf4:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return attempt(f"cannot load {folder}", AutoModelForCausalLM.from_pretrained, folder, **how)


def native_type():
    """The type of number that this machine computes fastest with, by its name in torch."""
    import torch

    if torch.cuda.is_available():  # T4 and V100 only emulate bfloat16
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def quieten():
    """Keep the libraries from talking among themselves."""
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", "You passed `quantization_config`")  # to a quantized model


def collate(examples, takes):
    """Tensors of shape (batch, longest), padded on the right, and labels of shape (batch, K).

    K reaches from the position in front of the first reply, which predicts its first token, to the
    end: where the model takes `logits_to_keep` it projects only these to the vocabulary, which
    gives exactly the loss on the replies. No token sees what is behind it, so that the padding
    needs no mask, and any id will do.
    """
    import torch

    width = max(example["length"] for example in examples)
    first = min(example["length"] - example["reply"] for example in examples) - 1
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        ids[row, : example["length"]] = torch.tensor(example["input_ids"])
        reply = slice(example["length"] - example["reply"], example["length"])
        labels[row, reply] = ids[row, reply]
    options = {"logits_to_keep": width - first, "use_cache": False}
    inputs = {name: value for name, value in options.items() if name in takes}
    return {"input_ids": ids, "labels": labels[:, first:]} | inputs


def reply_loss(outputs, labels, num_items_in_batch, mean_tokens):
    """Negative log-likelihood of the replies in nats, summed, by the tokens of the whole batch.

    In evaluation, where the Trainer takes the mean over rows, by the mean tokens of a row: that
    gives the mean over all tokens.
    """
    import torch

    logits = outputs.logits[:, -labels.shape[1] :].float()  # without a copy, unlike [:, … : -1]
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100
    )
    return loss / (num_items_in_batch if loss.requires_grad else mean_tokens * len(labels))


def train(model, train_set, validation_set, settings, run):
    """(the Trainer's log, seconds of all parts), from the last checkpoint on."""
    import torch
    from datasets import Dataset
    from peft.helpers import disable_input_dtype_casting
    from transformers import PrinterCallback, Trainer, TrainingArguments

    share = settings["batch_size"] // WORLD  # of each process
    micro = max(n for n in range(1, settings["micro_batch_size"] + 1) if share % n == 0)
    updates = settings["epochs"] * math.ceil(len(train_set) / settings["batch_size"])
    mean_tokens = sum(example["reply"] for example in validation_set) / (len(validation_set) or 1)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run / "log")
    arguments = TrainingArguments(
        output_dir=str(run / "checkpoints"),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=micro * WORLD,  # split: the order is that of one process
        per_device_eval_batch_size=micro * WORLD,
        accelerator_config={"split_batches": True},
        gradient_accumulation_steps=share // micro,
        train_sampling_strategy="group_by_length",
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.1 if updates > 1 else 0,  # a share, as are the next two; its first step
        eval_steps=0.25,  # learns nothing
        save_steps=0.05,
        eval_strategy="steps" if validation_set else "no",
        save_total_limit=2,
        enable_jit_checkpoint=True,  # at SIGTERM, when a machine is taken away
        prediction_loss_only=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="tensorboard",
        optim="paged_adamw_8bit" if model.device.type == "cuda" else "adamw_torch",
        bf16=model.dtype == torch.bfloat16,  # autocast casts the adapter's small matrices, where
        fp16=model.dtype == torch.float16,  # PEFT would cast the inputs of all layers
        use_cpu=model.device.type == "cpu",
        disable_tqdm=True,  # Progress has a bar
        remove_unused_columns=False,
        label_names=["labels"],
        seed=settings["seed"],
    )
    takes = inspect.signature(model.get_base_model().forward).parameters
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train_set),  # in memory: no mail in the library's cache
        eval_dataset=Dataset.from_list(validation_set) if validation_set else None,
        data_collator=functools.partial(collate, takes=takes),
        compute_loss_func=functools.partial(reply_loss, mean_tokens=mean_tokens * WORLD),
        callbacks=[progress := make_progress(settings["seed"], run / "training_duration.txt")],
    )
    trainer.remove_callback(PrinterCallback)
    # The thread that writes the log hands its error on to this one: no second message of it.
    threading.excepthook = lambda failure: None
    with disable_input_dtype_casting(model, active=arguments.bf16 or arguments.fp16):
        trainer.train(resume_from_checkpoint=last_checkpoint(run / "checkpoints"))
    if trainer.state.global_step < trainer.state.max_steps:
        print("train.py: stopped; the same command continues", file=sys.stderr)
        sys.exit(143)  # as of SIGTERM
    return trainer.state.log_history, progress.seconds


def make_progress(seed, duration_file):
    """A callback for the bar, the duration, and a loss that is no number.

    It seeds the order of each epoch and the dropout of each update, so that they are the same
    however often the training was interrupted.
    """
    from tqdm import tqdm
    from transformers import TrainerCallback, set_seed

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            known = state.global_step and duration_file.exists()  # not that of a failed start
            text = duration_file.read_text(encoding="utf-8") if known else "0 s"
            self.seconds = float(text.split()[-2])
            self.start = time.monotonic() - self.seconds
            bar = {"desc": "training", "unit": "update", "disable": None}
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, **bar)

        def on_epoch_begin(self, args, state, control, **kwargs):
            set_seed(seed + int(state.epoch))

        def on_step_begin(self, args, state, control, **kwargs):
            set_seed(seed + state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update()
            self.seconds = time.monotonic() - self.start
            if not RANK:
                clock = datetime.timedelta(seconds=round(self.seconds))
                text = f"The training took {clock} (h:mm:ss), {self.seconds:.1f} seconds\n"
                write(duration_file, text)

        def on_log(self, args, state, control, logs, **kwargs):
            for name in ("grad_norm", "loss"):
                lost = not math.isfinite(logs.get(name, 0))
                if lost and not (args.fp16 and name == "grad_norm"):  # fp16 skips such an update
                    advice = "take a lower --learning-rate and another --output-dir"
                    die(f"update {state.global_step}: {name} is {logs[name]}; {advice}")

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            place = f"update {state.global_step} of {state.max_steps}"
            print(f"  {place}: validation loss {metrics['eval_loss']:.3f}", flush=True)

    return Progress()


def last_checkpoint(checkpoints):
    """The newest whole checkpoint, None without one; the others after it are removed.

    The Trainer writes trainer_state.json last. One saved at SIGTERM may lack the log of its own
    step. Its random numbers are not used: see make_progress.
    """
    from transformers.trainer_utils import get_last_checkpoint

    while checkpoints.is_dir() and (name := get_last_checkpoint(checkpoints)):
        folder = Path(name)
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads((folder / "trainer_state.json").read_bytes())
            logged = max([entry["step"] for entry in state["log_history"]], default=0)
            unfinished = (folder / "checkpoint-is-incomplete.txt").exists()
            if logged == state["global_step"] and not unfinished:
                for file in folder.glob("rng_state*"):
                    file.unlink(missing_ok=True)
                return name
        if not RANK:
            print(f"{folder} is torn: passed over", file=sys.stderr)
            (folder / "trainer_state.json").unlink(missing_ok=True)  # before a kill can spare it
            shutil.rmtree(folder, ignore_errors=True)
    return None


def save_adapter(model, tokenizer, stop, settings, run):
    """Write adapter/: the weights, the tokenizer with its template, and what ends a reply."""
    from transformers import GenerationConfig

    trained = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert any(weight.any() for weight in trained), f"all {len(trained)} lora_B are zero"
    side, adapter = run / "adapter.part", run / "adapter"
    base = settings["base_model"]
    place = str(HERE / base) if (HERE / base).is_dir() else base  # for PEFT, from any folder
    model.peft_config["default"].base_model_name_or_path = place
    model.save_pretrained(side, save_embedding_layers=False)  # "auto" would ask the hub
    tokenizer.save_pretrained(side)
    GenerationConfig(
        do_sample=False,
        max_new_tokens=settings["max_reply_length"],
        eos_token_id=stop,
        pad_token_id=0,
        bos_token_id=tokenizer.bos_token_id,
    ).save_pretrained(side)
    shutil.rmtree(adapter, ignore_errors=True)
    os.replace(side, adapter)


def finish(train_set, validation_set, history, seconds, settings, run):
    """Write the picture, the model card and, last, train.json; then tidy up."""
    import torch

    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    tokens = sum(example["length"] for example in train_set)
    gpu = torch.cuda.is_available()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 * WORLD
    libraries = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    facts = settings | {
        "train_rows": len(train_set),
        "validation_rows": len(validation_set),
        "train_tokens": tokens,
        "trained_tokens": sum(example["reply"] for example in train_set),
        "updates": history[-1]["step"],
        "train_loss": sum(losses) / len(losses),  # the Trainer's leaves out what a resume skips
        "validation_losses": validation,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens * settings["epochs"] / seconds, 1),
        "peak_memory_gb": round((torch.cuda.max_memory_allocated() if gpu else peak) / 1e9, 2),
        "device": torch.cuda.get_device_name() if gpu else platform.machine(),
        "versions": {name: version(name) for name in libraries},
    }
    draw(history, run / "loss_curve.png")
    write(run / "adapter" / "README.md", model_card(facts))  # for the library's empty form
    write(run / "train.json", json.dumps(facts, indent=1))
    tidy(run)
    loss = f"validation loss {validation[-1]:.3f}" if validation else f"loss {losses[-1]:.3f}"
    rate, peak = f"{facts['tokens_per_second']} tokens a second", f"{facts['peak_memory_gb']} GB"
    print(f"{run / 'train.json'}: {loss} nats a token, {rate}, {peak}, {seconds:.0f} seconds")


def model_card(facts):
    """The adapter's README.md: no mail in it, and no path."""
    base = facts["base_model"]
    base = Path(base).name if (HERE / base).is_dir() else base
    names = [name for name in DEFAULTS if name in facts] + ["quantization", "seed"]
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, email]
---
# Replies to e-mail in one author's voice, on {base}

- **Prompt**: the chat template saved here; the system message is {quote(facts["instruction"])}.
- **Data**: {facts["train_rows"]} pairs of a mail and its reply, {facts["trained_tokens"]:,} tokens
  trained on; {facts["validation_rows"]} pairs held out. SHA-256 {facts["train_data_sha256"]}.
- **Training**: LoRA; {", ".join(f"{name} {facts[name]}" for name in names)}.
- **Loss**, nats a token: {facts["train_loss"]:.3f}; validation {facts["validation_losses"]}.
- **Use**: drafts that the author reads before sending. Facts in a draft may be invented.
- **Privacy**: the weights can give away names, phrases and whole sentences of the private mail
  that they were fitted to. Treat them as the mail itself.
"""


def draw(history, path):
    """The loss curve: training loss of every update and validation loss, in nats a token."""
    import matplotlib
    import pandas

    matplotlib.use("Agg")
    losses = pandas.DataFrame(history).reindex(columns=["step", "loss", "eval_loss"])
    losses = losses.groupby("step").first().interpolate()
    losses.columns = ["training", "validation"]
    axes = losses.plot(xlabel="update", ylabel="loss on the reply (nats a token)", ylim=(0, None))
    side = path.with_name("part." + path.name)
    axes.figure.savefig(side, dpi=150)
    os.replace(side, path)
    matplotlib.pyplot.close(axes.figure)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show
    try:
        main()
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # each library has its own for these
        if any(words in str(error) for words in FULL_DISK):
            die("no space left on the disk: free some and the same command continues")
        if any(words in str(error) for words in FULL_MEMORY):
            die("out of memory: lower --micro-batch-size or --max-length")
        if type(error).__name__ == "UnpicklingError":
            die("a checkpoint holds more than numbers: delete the run folder's checkpoints")
        if isinstance(error, OSError):
            die(error)
        raise
