"""Answer mails with a fine-tuned model, greedily, and score the author's real replies under it.

  python generate.py --run runs/demo/exp1.M-M --data data/sample/maud_okafor_test_16.jsonl
  python generate.py --run runs/demo/exp1.M-M --mail mail.txt
  python generate.py --run runs/demo/exp1.M-M --export FOLDER

The first writes runs/demo/exp1.M-M/predictions.jsonl, a row a mail: id, mail, reference,
prediction, finish_reason ("stop" or "length"), reference_nll (negative log-likelihood of the
reference and its end of turn, summed, in nats) and reference_tokens; it takes half a minute on two
CPU cores and prints how many replies ended by themselves. The second prints one reply as it is
written. The third writes adapter and base model as one model for transformers, vLLM and Ollama.
"""

import argparse
import bisect
import contextlib
import datetime
import fcntl
import functools
import gc
import glob
import hashlib
import inspect
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import unicodedata
import warnings
from pathlib import Path

TEMPERATURE = 0.7  # of the replies that --samples draws
# The same in a row: a phrase four times, a word five times, two letters ("hahahaha") ten times
LOOP = re.compile(
    r"(\S.{5,60}?)(?:\s*\1){3,}|(\S.{2,4}?)(?:\s*\2){4,}|(\S.)(?:\s*\3){9,}", re.DOTALL
)
BLANKLESS = r"\u0e00-\u109f\u1780-\u17ff\u3040-\u9fff"
CHUNK = 16  # tokens that a batch writes before the rows that have ended leave it
NO_MODEL = "{}, the run's base model, is not there: say where it is by --base-model"
FULL_DISK = ("No space left", "inline_container")  # in the errors of several libraries
FULL_MEMORY = ("out of memory", "can't allocate memory")
HERE = Path(__file__).resolve().parent
RANK = int(os.environ.get("RANK", "0"))  # of several processes, by torchrun or accelerate
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def main(argv=None):
    os.umask(0o077)  # replies to private mail are for their owner only
    # With the package kernels the libraries would download code and run it; bitsandbytes wants it.
    sys.modules["kernels"] = None
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    args = parse_args(argv)
    if RANK:  # only the first of several processes prints
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if args.id:
        return print_rows(args.run, args.id)
    if args.baseline:
        return write_baseline(args)
    settings = read_settings(args)
    skip_unused(settings)
    folder = find_model(args.base_model or settings["base_model"])
    if args.export:
        return export(folder, settings, args.run, args.export)
    rows = [read_mail(args.mail, args.notes)] if args.mail else read_jsonl(args.data)[: args.limit]
    if sys.stderr.isatty():
        print("loading the libraries and the model", file=sys.stderr)
    gc.disable()  # nothing that the libraries make when they are loaded is garbage: a sixth faster
    tokenizer, model = load_run(folder, settings, args.run, args.untuned)
    gc.enable()
    examples = [encode(tokenizer, row, settings) for row in rows]
    if args.mail:
        return print_reply(tokenizer, model, examples[0], args.samples, settings["max_prompt"])
    with unfinished(args, settings, examples) as (file, answers):
        sizes = (args.batch_size, args.samples)
        answer_all(tokenizer, model, examples, sizes, file, answers)
        answers = gather(answers)
        if not RANK:
            cut = sum(example["cut"] for example in examples)
            found = [answers[place] for place in range(len(rows))]
            write_predictions(args.output, rows, found, cut)


def parse_args(argv):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.error = die  # one line, without the usage
    add = parser.add_argument_group("whose replies").add_argument
    add("--run", type=Path, help="run folder of train.py")
    add("--untuned", action="store_true", help="the run's base model without its adapter")
    add("--base-model", help="where the run's base model is now, if it has moved")
    baseline_help = "the author's most frequent reply, or the reply to the most similar mail"
    add("--baseline", choices=["constant", "nearest"], help=baseline_help)
    add("--train-data", type=Path, help="JSONL that a --baseline copies from")
    add = parser.add_argument_group("to what").add_argument
    add("--data", type=Path, help="JSONL of `prepare_data.py format`")
    add("--limit", type=positive, help="answer its first LIMIT mails (default all)")
    add("--output", type=Path, help="(default RUN/predictions.jsonl)")
    add("--mail", help="answer the mail in a text file, or - for standard input")
    add("--notes", default="", help="what the reply to the --mail should say")
    add("--export", type=Path, help="write the merged model to this folder")
    add("--id", nargs="+", help="print mail, reference and reply of these in RUN/predictions.jsonl")
    add = parser.add_argument_group("how").add_argument
    add("--max-new-tokens", type=positive, help="(default the run's --max-reply-length)")
    add("--batch-size", type=positive, default=16, help="replies at a time (default %(default)s)")
    drawn = "take the best of N replies: most words of the notes, then most like the others"
    add(
        "--samples", metavar="N", type=positive, default=1, help=f"{drawn} (default: the likeliest)"
    )
    kinds = ["auto", "float32", "bfloat16", "float16"]
    add("--dtype", choices=kinds, help="numbers of the base model (default as in training)")
    args = parser.parse_args(argv)
    if sum(map(bool, (args.data, args.mail, args.export, args.id))) != 1:
        die("exactly one of --data, --mail, --export and --id says what to do")
    if args.baseline and (args.run or not (args.train_data and args.data and args.output)):
        die("--baseline wants --train-data, --data and --output, and no --run")
    if not args.baseline and not args.run:
        die("--run or --baseline is missing: whose replies?")
    if args.untuned and not (args.mail or args.data and args.output):
        die("--untuned wants --data with an --output of its own, or --mail")
    if args.notes and not args.mail:
        die("--notes wants --mail: the rows of --data have their own")
    args.output = args.output or args.run and args.run / "predictions.jsonl"
    return args


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return int(text)


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


def read_mail(name, notes):
    """One mail as a row: an .eml, or a text in UTF-8 or in the letters of old Windows programs."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        die(f"{name}: {error.strerror}")
    if name.lower().endswith((".eml", ".emlx")):
        import mail

        text = mail.text_of(*mail.open_message(data))
    else:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("windows-1252", errors="replace")
    if "\0" in text:
        die(f"{name}: no text of a mail")
    if not text.strip():
        die(f"{name}: an empty mail")
    notes = os.fsencode(notes).decode(errors="replace")  # a terminal may not write UTF-8
    return {"id": name, "prompt": [{"role": "user", "content": text}], "notes": notes}


def print_rows(run, wanted):
    """Test mails of a run by their ids: the mail, its notes, the reference and the reply."""
    path = run / "predictions.jsonl"
    made = f"`generate.py --run {run} --data TEST.jsonl` makes it"
    if not path.is_file():
        die(f"{path}: no such file; {made}")
    try:
        rows = {row["id"]: row for row in map(json.loads, path.read_bytes().splitlines())}
        if unknown := [name for name in wanted if name not in rows]:
            some = ", ".join(list(rows)[:5])
            die(f"{path}: no id {unknown[0]} among {len(rows)}, such as {some}")
        for row in map(rows.get, wanted):
            parts = [part for part in ("mail", "notes", "reference", "prediction") if row.get(part)]
            for part in parts:
                text = " ".join(f"{part}: {row[part]}".split())
                text = "".join(c if c.isprintable() else "�" for c in text)  # no terminal command
                print(textwrap.fill(text, 98, subsequent_indent="    "))
            print()
    except (ValueError, KeyError, TypeError, AttributeError):
        die(f"{path}: not predictions; {made} again")


def read_settings(args):
    """The settings that train.py left in the run, with the length that was asked for here."""
    path = args.run / "train.json"
    if not path.is_file():
        die(f"{path}: no such file; `make mine` or train.py writes it when a training is finished")
    try:
        settings = {} | json.loads(path.read_bytes())
    except (ValueError, TypeError):
        die(f"{path}: not JSON; train again")
    if "reply_start" not in settings:
        die(f"{path} is of another version: train again")
    if args.max_new_tokens:
        settings["max_reply_length"] = args.max_new_tokens
    if args.dtype or settings.get("dtype") != "float32":  # a run may be of another machine
        asked = args.dtype or "auto"
        settings["dtype"] = native_type() if asked == "auto" else asked
    return settings


def skip_unused(settings):
    """Keep PEFT and transformers from importing what no reply needs: a third of their start."""
    unused = ["scipy", "sklearn"]
    if settings["quantization"] == "none":
        unused.append("bitsandbytes")
    for name in [] if "transformers" in sys.modules else unused:
        sys.modules.setdefault(name, None)


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


def load_run(folder, settings, run, untuned=False, merged=False):
    """(tokenizer with the run's template, base model as in training with the run's adapter).

    `merged`: unrounded, in the precision of its files, and merged with the adapter.
    """
    import psutil
    from peft import PeftModel
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    quieten()
    adapter, nf4 = run / "adapter", settings["quantization"] == "4bit" and not merged
    if not (adapter / "adapter_model.safetensors").is_file():  # or PEFT would take a pickle
        die(f"{adapter}: no adapter_model.safetensors; delete {run / 'train.json'} and train again")
    damaged = f"cannot load {adapter}: it is damaged, or was trained on another model than {folder}"
    tokenizer = attempt(damaged, AutoTokenizer.from_pretrained, adapter)
    config = attempt(f"cannot load {folder}", AutoConfig.from_pretrained, folder)
    if merged and getattr(config, "quantization_config", None):
        die(f"{folder} is held in 4 bits: name the model that it was made of by --base-model")
    model = load_weights(folder, nf4, "auto" if merged else settings["dtype"])
    free = psutil.virtual_memory().available
    if nf4 and model.device.type == "cpu" and 16 * model.num_parameters() < free:
        model, nf4 = model.dequantize(), False  # the same rounded weights, faster on a CPU
    if not untuned:
        model = attempt(damaged, PeftModel.from_pretrained, model, adapter)
        model = model if nf4 else model.merge_and_unload()
    model.generation_config = attempt(damaged, GenerationConfig.from_pretrained, adapter)
    model.generation_config.max_new_tokens = settings["max_reply_length"]
    return tokenizer, model.eval()


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


def encode(tokenizer, row, settings):
    """{"prompt": ids, "reply": ids of the reference with its end of turn, or [], "cut": bool}."""
    if row.get("notes") and row["prompt"][0]["role"] != "system":
        told = settings["instruction"]
        told += "" if told[-1:] in ".!?。！？" else "."
        said = f"{told} In the reply: {row['notes']}".lstrip()
        row = row | {"prompt": [{"role": "system", "content": said}, *row["prompt"]]}
    prompt, ids, cut = encode_prompt(tokenizer, row, settings["max_prompt"])
    known = row.get("completion")
    reply = encode_reply(tokenizer, row, prompt, ids, settings) if known else []
    return {"prompt": ids, "reply": reply, "cut": cut, "notes": row.get("notes") or ""}


@contextlib.contextmanager
def unfinished(args, settings, examples):
    """(file for finished answers, {place: answer} of those that an interrupted call left in it).

    Its first line says what they are answers to: those to anything else are not taken. Dies where
    another process writes it; gone when all is done.
    """
    weights = b"" if args.untuned else (args.run / "adapter/adapter_model.safetensors").read_bytes()
    sizes = [args.batch_size, args.samples, WORLD]
    wanted = json.dumps([settings, sizes, args.untuned, examples]).encode()
    key = json.dumps(hashlib.sha256(wanted + weights).hexdigest()).encode() + b"\n"
    side, answers, whole = args.output.with_name(f"{args.output.name}.{RANK}.part"), {}, 0
    side.parent.mkdir(parents=True, exist_ok=True)
    with side.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            die(f"{args.output}: another process writes it; wait for it")
        file.seek(0)
        for number, line in enumerate(file):
            if not line.endswith(b"\n") or not number and line != key:  # torn by a kill, or others
                break
            if number:
                answers |= {int(place): answer for place, answer in json.loads(line).items()}
            whole += len(line)
        file.truncate(whole)
        if not whole:
            file.write(key)
        if answers:
            print(f"{len(answers)} replies are there from before")
        yield file, answers
        parts = f"{glob.escape(args.output.name)}.*.part"
        for part in () if RANK else args.output.parent.glob(parts):
            part.unlink()


def gather(answers):
    """In the first of several processes the answers of all."""
    if WORLD == 1:
        return answers
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    no_gpu = not torch.cuda.is_available()
    PartialState(cpu=no_gpu, timeout=datetime.timedelta(days=1))  # the slowest may need long
    return {place: answer for part in gather_object([answers]) for place, answer in part.items()}


def answer_all(tokenizer, model, examples, sizes, file, answers):
    """Fill in this process's share of {place: answer} and write each batch to the file.

    `sizes`: how many replies are written at a time, how many to each mail. Mails of like length are
    answered together, the longest first, where memory would run out.
    """
    from tqdm import tqdm

    batch_size, samples = max(1, sizes[0] // sizes[1]), sizes[1]
    if "position_ids" not in parameters(model):  # it would count the padding of a batch as text
        batch_size = 1
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place]["prompt"]))
    batches = [order[n : n + batch_size] for n in range(0, len(order), batch_size)][RANK::WORLD]
    total, off = sum(map(len, batches)), bool(RANK) or None
    with tqdm(total=total, desc="answering", unit="mail", disable=off) as bar:
        for batch in batches:
            if batch[-1] not in answers:
                replies = answer_in_halves(
                    tokenizer, model, [examples[place] for place in batch], samples
                )
                written = dict(zip(batch, replies, strict=True))
                answers |= written
                file.write(json.dumps(written).encode() + b"\n")
                file.flush()
            bar.update(len(batch))


def answer_in_halves(tokenizer, model, examples, samples):
    """The answers to one batch, or to its halves where a GPU's memory does not hold the whole."""
    import torch

    try:
        return answer(tokenizer, model, examples, samples)
    except torch.OutOfMemoryError:
        if len(examples) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(examples) // 2
    parts = (examples[:half], examples[half:])
    return [reply for part in parts for reply in answer_in_halves(tokenizer, model, part, samples)]


def parameters(model):
    """What a forward pass of the base model takes, by name."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(base.forward).parameters


def answer(tokenizer, model, examples, samples=1, watch=None):
    """The answers to one batch: prediction, finish_reason, reference_nll, reference_tokens.

    With several samples the prediction is the best of so many. `watch` is called now and then with
    the ids of the replies so far.
    """
    import torch

    stop = set(model.generation_config.eos_token_id)
    with torch.inference_mode():
        cache, nats = read(model, examples)
        replies = write_replies(model, examples, cache, stop, samples, watch)
    drawn = [read_reply(tokenizer, reply, stop) for reply in replies]
    answers = []
    for place, (example, nll) in enumerate(zip(examples, nats, strict=True)):
        mine = drawn[place * samples : (place + 1) * samples]
        known = bool(example["reply"])
        answers.append(mine[choose(mine, example["notes"])])
        answers[-1]["reference_nll"] = round(nll, 4) if known else None
        answers[-1]["reference_tokens"] = len(example["reply"]) if known else None
    return answers


def read_reply(tokenizer, reply, stop):
    """A reply's ids as the text that they say, without thoughts, and how it ended."""
    stopped = reply[-1] in stop
    text = tokenizer.decode(reply[:-1] if stopped else reply, skip_special_tokens=True)
    text = re.sub(r"^.*?</\w*think\w*>", "", text, flags=re.DOTALL).strip()
    return {"prediction": text, "finish_reason": "stop" if stopped else "length"}


def choose(drawn, notes):
    """The place of the best reply: with most words of the notes, then the closest to the others.

    That is minimum Bayes risk (Eikema and Aziz 2020) by chrF (Popović 2015). A reply that does not
    end, is empty or repeats itself without end counts last.
    """
    if len(drawn) == 1:
        return 0
    from sacrebleu.metrics import CHRF

    metric, noted = CHRF(beta=1), words_of(notes)  # the usual beta, 2, favours long replies
    texts = [answer["prediction"] for answer in drawn]

    def merit(place):
        text, others = texts[place], texts[:place] + texts[place + 1 :]
        ended = drawn[place]["finish_reason"] == "stop" and text and not LOOP.search(text)
        closeness = sum(metric.sentence_score(text, [other]).score for other in others)
        return bool(ended), len(noted & words_of(text)), closeness

    return max(range(len(drawn)), key=merit)


def words_of(text):
    """Its words in lower case; of scripts without blanks, such as Thai or Chinese, its letters."""
    text = unicodedata.normalize("NFC", text.casefold())
    return set(re.findall(rf"[^\W{BLANKLESS}]+|\w", text))


def read(model, examples):
    """(cache of the prompts, NLL of each reply in nats).

    Where a cache holds the keys and values of every token, each prompt is read once and alone, its
    reply behind it: without padding it needs no mask, and that is fastest. The cache then goes back
    to the prompt's last token but one, since `generate` wants a token to begin with. Any other
    cache, such as one of a window, is left empty for `generate` to fill.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = new_cache(model)
    if cache is None or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return cache, [score(model, example) if example["reply"] else 0.0 for example in examples]

    def join(parts):  # each of shape (1, heads, length, size), with another length
        return pad_left([part[0].transpose(0, 1) for part in parts]).transpose(1, 2)

    caches, nats = [], []
    for example in examples:
        cache = DynamicCache(config=model.config)
        nats.append(score(model, example, cache))
        cache.crop(-len(example["reply"]) - 1)
        caches.append(cache.layers)
    layers = [
        (join([row.keys for row in rows]), join([row.values for row in rows]))
        for rows in zip(*caches, strict=True)
    ]
    return DynamicCache(ddp_cache_data=layers, config=model.config), nats


def new_cache(model):
    """An empty cache for a batch; None where a row that has ended cannot leave it.

    That is so of recurrent states.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin as Recurrent

    if "past_key_values" not in parameters(model):
        return None
    cache = DynamicCache(config=model.config)
    return None if any(isinstance(layer, Recurrent) for layer in cache.layers) else cache


def score(model, example, cache=None):
    """The NLL of a reply in nats. The cache then holds the prompt and the reply."""
    import torch

    start, n = len(example["prompt"]), len(example["reply"])
    ids = torch.tensor([example["prompt"] + example["reply"]], device=model.device)
    options = {"past_key_values": cache, "use_cache": cache is not None, "logits_to_keep": n + 1}
    takes = parameters(model)
    options = {name: value for name, value in options.items() if name in takes}
    logits = model(input_ids=ids, **options).logits[0, -n - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum").item()


def pad_left(rows):
    """Tensors of various lengths as one, each at the end of the longest length."""
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True, padding_side="left")


def write_replies(model, examples, cache, stop, samples=1, watch=None):
    """The ids of each row's reply with the one that ends it; rows that have ended leave.

    With several samples each mail has so many rows, one behind the other: others in each "version"
    of an example.
    """
    import torch

    examples = [example for example in examples for _ in range(samples)]
    if samples > 1:
        if cache is not None and cache.get_seq_length():
            cache.batch_repeat_interleave(samples)
        dice = [
            make_die(example, row % samples + samples * example.get("version", 0))
            for row, example in enumerate(examples)
        ]
    prompts = [torch.tensor(example["prompt"], device=model.device) for example in examples]
    ids, mask = pad_left(prompts), pad_left([torch.ones_like(prompt) for prompt in prompts])
    rows, replies = list(range(len(examples))), [[] for _ in examples]
    left = model.generation_config.max_new_tokens
    while rows and left:
        new, width = left if cache is None else min(left, CHUNK), ids.shape[1]
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if samples > 1:
            inputs["logits_processor"] = [throw([dice[row] for row in rows])]
        ids = model.generate(**inputs, max_new_tokens=new)
        going = []
        for place, row in enumerate(rows):
            for token in ids[place, width:].tolist():
                replies[row].append(token)
                if token in stop:
                    break
            else:
                going.append(place)
        left -= new
        rows = [rows[place] for place in going]
        if watch:
            watch(replies)
        if rows and left:
            going = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(going)
            ids = ids[going]
            mask = torch.nn.functional.pad(mask[going], (0, new), value=1)
    return replies


def make_die(example, number):
    """Random numbers for one reply to a mail: the same again, whatever else is drawn beside it.

    None for the first, the likeliest reply.
    """
    import torch

    if not number:
        return None
    digest = hashlib.sha256(json.dumps([example["prompt"], number]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def throw(dice):
    """What makes `generate`, which takes the likeliest token, draw one: Gumbel noise on its logits.

    So each row is drawn by its own dice (Gumbel 1954; Maddison et al. 2014).
    """
    import torch

    def add_noise(ids, logits):
        waits = torch.ones(logits.shape)  # without a die no noise: the logarithm is 0
        for row, die in zip(waits, dice, strict=True):
            if die:
                row.exponential_(generator=die)
        return logits.float() / TEMPERATURE - waits.log().to(logits.device)

    return add_noise


def print_reply(tokenizer, model, example, samples, room):
    """Print one reply: as it is written or, the best of several, behind a bar."""
    import torch
    from tqdm import tqdm
    from transformers import TextStreamer

    if example["cut"]:
        room = f"a prompt has room for {room} tokens"
        print(f"generate.py: the mail lost its end: {room}", file=sys.stderr)
    most = model.generation_config.max_new_tokens
    if samples > 1:
        with tqdm(total=most, desc=f"{samples} replies", unit="token", disable=None) as bar:
            (best,) = answer(tokenizer, model, [example], samples, lambda rows: bar.update(CHUNK))
        print(best["prediction"])
        ended = best["finish_reason"] == "stop"
    else:
        ids = torch.tensor([example["prompt"]], device=model.device)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer
            )
        ended = whole[0, -1].item() in model.generation_config.eos_token_id
    if not ended:
        print(f"generate.py: stopped at {most} tokens: --max-new-tokens", file=sys.stderr)


def write_baseline(args):
    """Copied replies as a run: predictions without likelihood, and where they were copied from."""
    rows = read_jsonl(args.data)[: args.limit]
    pairs = [
        (row["prompt"][-1]["content"], row["completion"][-1]["content"])
        for row in read_jsonl(args.train_data)
        if row.get("completion")
    ]
    if not pairs:
        die(f"{args.train_data}: no replies to copy; `prepare_data.py format` makes training mails")
    mails, replies = zip(*pairs, strict=True)
    if args.baseline == "constant":  # in whatever layout and case; of equal ones the shortest
        keys = [" ".join(re.findall(r"\w+", reply.lower())) for reply in replies]
        best = min(range(len(keys)), key=lambda i: (-keys.count(keys[i]), len(keys[i])))
        copied = [best] * len(rows)
    else:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
        known = vectorizer.fit_transform(mails)
        asked = vectorizer.transform([row["prompt"][-1]["content"] for row in rows])
        copied = (asked @ known.T).toarray().argmax(1)
    unknown = {"finish_reason": None, "reference_nll": None, "reference_tokens": None}
    digest = hashlib.sha256(args.train_data.read_bytes()).hexdigest()
    facts = {"baseline": args.baseline, "train_data": str(args.train_data)}
    facts |= {"train_data_sha256": digest}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=1)
    args.output.with_name("baseline.json").write_text(text, encoding="utf-8")
    write_predictions(
        args.output, rows, [{"prediction": replies[i].strip()} | unknown for i in copied]
    )


def write_predictions(path, rows, answers, cut=0):
    """predictions.jsonl in the order of the rows, whole or not at all, and the headline."""
    side = path.with_name(path.name + ".part")
    with side.open("w", encoding="utf-8") as file:
        for row, answer in zip(rows, answers, strict=True):
            line = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
            reference = row["completion"][0]["content"] if row.get("completion") else None
            line |= {"mail": row["prompt"][-1]["content"], "reference": reference} | answer
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(side, path)
    reasons = [answer["finish_reason"] for answer in answers]
    ends = f"{reasons.count('stop')} ended by themselves, {reasons.count('length')} were cut off"
    ends += f"; {cut} of the mails lost their end" if cut else ""
    print(f"{path}: {len(rows)} replies, {'copied' if None in reasons else ends}")


# What Ollama writes for a turn. Its importer would know other families only by their unfinished
# chat templates (it takes what differs by under 100 letters from one of its own).
MODELFILE_TEMPLATES = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n"
    "{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n",
    "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST]"
    "{{ .Response }} </s>",
)


def export(folder, settings, run, output):
    """The adapter merged into the unrounded base model, whole or not at all."""
    if output.exists() and not (output / "Modelfile").is_file():
        die(f"{output} is there and no export: name another folder")
    tokenizer, model = load_run(folder, settings, run, merged=True)
    side = output.with_name(output.name + ".part")
    shutil.rmtree(side, ignore_errors=True)
    model.save_pretrained(side)
    tokenizer.save_pretrained(side)
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    card = card.replace("library_name: peft", "library_name: transformers")
    (side / "README.md").write_text(card, encoding="utf-8")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 4096
    stops = [tokenizer.decode([id]) for id in model.generation_config.eos_token_id]
    lines = [
        "FROM .",
        *(f'PARAMETER stop "{text}"' for text in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_predict {settings['max_reply_length']}",
        f"PARAMETER num_ctx {min(context, 4096)}",
    ]
    if settings["instruction"]:
        system = neutralise(tokenizer, settings["instruction"]).replace('"""', "'''")
        lines.append(f'SYSTEM """{system}"""')
    known = [f'TEMPLATE """{text}"""' for text in MODELFILE_TEMPLATES if fits(tokenizer, text)]
    lines[1:1] = known or ["# TEMPLATE: copy it from `ollama show --modelfile` of this family"]
    (side / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(side, output)
    precision = str(model.dtype).removeprefix("torch.")
    print(f"{output}: the merged model in {precision}, a model card and a Modelfile for Ollama")


def fits(tokenizer, template):
    """Whether a template of Ollama's writes what the tokenizer's does."""
    turns = [{"role": "system", "content": "SYSTEM0"}, {"role": "user", "content": "USER1"}]
    text = render(tokenizer, turns).removeprefix(tokenizer.bos_token or "")  # Ollama adds its own
    for name, value in ((".System", "SYSTEM0"), (".Prompt", "USER1")):
        template = template.replace(f"{{{{ {name} }}}}", value)
    head = template.partition("{{ .Response }}")[0]
    return head.replace("{{ if .System }}", "").replace("{{ end }}", "") == text


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show
    try:
        main()
    except KeyboardInterrupt:
        print("generate.py: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # each library has its own for these
        if any(words in str(error) for words in FULL_DISK):
            die("no space left on the disk: free some and the same command continues")
        if any(words in str(error) for words in FULL_MEMORY):
            die("out of memory: lower --batch-size")
        if isinstance(error, OSError):
            die(error)
        raise
