"""Answer mails with a fine-tuned model, greedily, and score the author's real replies under the same model.

  python generate.py --run runs/demo/exp1.M-M --data data/sample/maud_okafor_test_16.jsonl
  python generate.py --run runs/demo/exp1.M-M --mail mail.txt --instructions "say no, politely; propose Tuesday" --variants 3
  python generate.py --run runs/demo/exp1.M-M --chat
  python generate.py --run runs/demo/exp1.M-M --export FOLDER

The first prints how many replies stopped by themselves and writes runs/demo/exp1.M-M/predictions.jsonl, a row a mail: id, mail,
reference, prediction, finish_reason ("stop" or "length"), reference_nll (negative log-likelihood of the whole reference and its
end of turn, summed, in nats) and reference_tokens; half a minute on two CPU cores. The second prints one reply as it is written,
the greedy one, and two samples. The third asks for a mail, prints a draft, asks what to change, and so on. The
fourth writes adapter and base model as one model for transformers, vLLM and Ollama.
"""

import argparse
import contextlib
import copy
import datetime
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RANK, LOCAL_RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))


def main(argv=None):
    os.umask(0o077)  # replies to private mail are their owner's alone
    sys.modules["kernels"] = None  # with this package the libraries would fetch code from a hub, unasked, and run it
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # misses it aloud
    args = parse_args(argv)
    if RANK:  # of several processes the first one speaks
        sys.stdout = open(os.devnull, "w")
    if args.id:
        return print_one(args.run, args.id)
    if args.baseline:
        return write_baseline(args.baseline, args.train_data, read_jsonl(args.data)[: args.limit], args.output)
    settings = read_settings(args)
    if args.export:
        return export(settings, args.run, args.export)
    rows = [read_mail(args.mail) | {"instructions": args.instructions}] if args.mail else read_jsonl(args.data)[: args.limit] if args.data else []
    tokenizer, model = load(settings, args.run if not args.base_model else None)
    if args.chat:
        return chat(tokenizer, model, settings, args.instructions)
    room = settings.get("max_prompt", model.config.max_position_embeddings - settings["max_new_tokens"])
    if room < 1:
        die(f"--max-new-tokens {settings['max_new_tokens']} leaves no room for a mail in {model.config.max_position_embeddings} tokens")
    examples = [encode(tokenizer, row, room) for row in with_instruction(rows, settings["instruction"])]
    say_cut(examples, room)
    if args.mail:
        return [draft(tokenizer, model, examples[0], settings["max_new_tokens"], variant) for variant in range(args.variants)]
    batch_size = args.batch_size or rows_at_a_time(model, room + settings["max_new_tokens"])
    weights = b"" if args.base_model else (args.run / "adapter" / "adapter_model.safetensors").read_bytes()
    key = hashlib.sha256(json.dumps([settings, batch_size, WORLD, examples]).encode() + weights).hexdigest()
    with batches(args.output, key) as kept:
        answers = gather(answer(tokenizer, model, examples, settings["max_new_tokens"], batch_size, *kept))
        if not RANK:
            write(args.output, rows, [answers[place] for place in range(len(rows))])


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = die  # one line, without the usage
    files = parser.add_argument_group("files")
    files.add_argument("--run", metavar="DIR", type=Path, help="run folder of train.py")
    files.add_argument("--base-model", metavar="M", help="the untuned model M instead; with --run, on that run's settings")
    files.add_argument("--baseline", choices=["constant", "nearest"], help="no model: the author's most frequent reply in the "
                       "training mails, or the reply to the most similar one")  # fmt: skip
    files.add_argument("--train-data", metavar="JSONL", type=Path, help="training mails of a --baseline")
    files.add_argument("--data", metavar="JSONL", type=Path, help="mails to answer, from `prepare_data.py format`")
    files.add_argument("--output", metavar="F", type=Path, help="(default DIR/predictions.jsonl)")
    files.add_argument("--mail", metavar="FILE", help="answer the one mail in a text file, or - for standard input")
    files.add_argument("--chat", action="store_true", help="answer mail after mail from standard input, with changes on request")
    files.add_argument("--export", metavar="FOLDER", type=Path, help="write the merged model, for other programs, to FOLDER")
    files.add_argument("--id", help="print the mail, reply and reference of this id in DIR/predictions.jsonl")
    files.add_argument("--limit", metavar="N", type=positive, help="answer the first N mails (default all)")
    method = parser.add_argument_group("method")
    method.add_argument("--max-new-tokens", metavar="N", type=positive, help="(default the run's --max-reply-length, or 512)")
    method.add_argument("--instructions", metavar="TEXT", help="what to answer, for --mail and --chat: say no, propose Tuesday")
    method.add_argument("--variants", metavar="N", type=positive, default=1,
                        help="replies to the --mail, the greedy one and N-1 samples (default %(default)s)")  # fmt: skip
    method.add_argument("--quantization", choices=["4bit", "none"], help="(default the run's, or 4bit)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--batch-size", metavar="N", type=positive, help="mails answered at a time (default as many as 4 GB hold on a CPU, a GPU's memory or 64 there)")
    args = parser.parse_args(argv)
    if not (args.run or args.base_model or args.baseline):
        parser.error("--run, --base-model or --baseline is missing: whose replies?")
    if args.baseline and (args.run or args.base_model or not (args.train_data and args.data and args.output)):
        parser.error("--baseline wants --train-data, --data and --output alone: no model answers")
    if sum(map(bool, (args.data, args.mail, args.chat, args.export, args.id))) != 1:
        parser.error("exactly one of --data, --mail, --chat, --export and --id says what to do")
    if args.instructions and not (args.mail or args.chat) or args.variants > 1 and not args.mail:
        parser.error("--instructions is for --mail and --chat, --variants for --mail")
    if args.id and not args.run:
        parser.error("--id reads the predictions of a --run")
    if args.export and (args.base_model or not args.run):
        parser.error("--export merges the adapter of a --run into that run's own base model")
    if args.base_model and args.data and not args.output:
        parser.error("--base-model wants an --output: the run's own predictions.jsonl is for its adapter")
    if args.data and not args.output:
        args.output = args.run / "predictions.jsonl"
    return args


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return int(text)


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"generate.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def leave(number, frame):
    print("generate.py: interrupted; the same command goes on", file=sys.stderr)
    sys.exit(128 + number)


def read_jsonl(path):
    """The rows of a prompt/completion file; a mail still to be answered has no completion."""
    if not path.is_file():
        die(f"{path}: no such file; `prepare_data.py format` makes it from a CSV")
    rows, ids = [], set()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            turns = [(message["role"], message["content"].strip()) for message in row["prompt"] + row.get("completion", [])]
            json.dumps(row, ensure_ascii=False).encode()  # half a character is no text
            if row["id"] + "" in ids:
                die(f"{path}, line {number}: id {row['id']} stands there twice")
            if not {role for role, _ in turns} <= {"system", "user", "assistant"}:  # a role stands in the prompt as it is
                raise ValueError
            if row["prompt"][-1]["role"] != "user" or "completion" in row and turns[-1][0] != "assistant":
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            die(f"{path}, line {number}: not a row of id, prompt and completion; `prepare_data.py format` makes them")
        ids.add(row["id"])
        rows.append(row)
    if not rows:
        die(f"{path}: no rows")
    return rows


def read_mail(name):
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        die(f"{name}: {error}")
    if not text.strip():
        die(f"{name}: an empty mail")
    return {"id": name, "prompt": [{"role": "user", "content": text}]}


def print_one(run, wanted):
    """One test mail of a run with its reply and the reference, as the study's result notebooks showed them."""
    path = run / "predictions.jsonl"
    if not path.is_file():
        die(f"{path}: no such file; `generate.py --run {run} --data TEST.jsonl` makes it")
    try:
        rows = {row["id"]: row for row in map(json.loads, path.read_bytes().splitlines())}
    except (ValueError, KeyError, TypeError):
        die(f"{path}: not JSON, a row a line; `generate.py --run {run} --data TEST.jsonl` makes it anew")
    if wanted not in rows:
        die(f"{path}: no id {wanted} among {len(rows)}, such as {', '.join(list(rows)[:5])}")
    for part in ("mail", "reference", "prediction"):
        print(f"--- {part}\n{rows[wanted][part]}\n")


def read_settings(args):
    """base_model, quantization, instruction and lengths: the flags, else the run's own, else no limit but the context's."""
    settings = {"base_model": args.base_model, "quantization": "4bit", "instruction": None}
    if args.run:
        if not (args.run / "train.json").is_file():
            die(f"{args.run / 'train.json'}: no such file; train.py writes it when a training is finished")
        try:
            settings = json.loads((args.run / "train.json").read_bytes()) | {}
        except (ValueError, TypeError):
            die(f"{args.run / 'train.json'}: not JSON; train again")
        if missing := {"base_model", "quantization", "instruction", "max_prompt", "max_reply_length"} - settings.keys():
            die(f"{args.run / 'train.json'} says no {', '.join(sorted(missing))}: it is of an older version; train again")
    given = {name: getattr(args, name) for name in ("base_model", "quantization", "max_new_tokens") if getattr(args, name)}
    return {"max_new_tokens": settings.get("max_reply_length", 512)} | settings | given


def fetch(kind, name, **how):
    """From the disk if it is there: a hub that is asked at every start knows who works when, and may send another model."""
    from huggingface_hub import constants

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return kind.from_pretrained(name, **how)
    except (OSError, ValueError):
        if offline or Path(name).is_dir():
            raise
    finally:
        constants.HF_HUB_OFFLINE = offline
    return kind.from_pretrained(name, **how)


def load(settings, run, own_dtype=False):
    """(tokenizer, model): the base model as it was in training, with the run's adapter unless run is None.

    With own_dtype in the precision of its files instead of the machine's fastest.
    """
    import psutil
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' among themselves
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    gpu = torch.cuda.is_available()
    dtype = torch.float32
    if gpu:  # T4 and V100 only emulate bf16
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    quantized = settings["quantization"] == "4bit"
    base_model = settings["base_model"]
    try:
        tokenizer = fetch(AutoTokenizer, base_model)
        model = fetch(
            AutoModelForCausalLM,
            base_model,
            dtype="auto" if own_dtype else dtype,
            device_map={"": LOCAL_RANK if gpu else "cpu"},
            quantization_config=nf4 if quantized else None,
            attn_implementation="sdpa",
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        die(f"cannot load {base_model} ({reason}): the embedded model is made by `make model`; a gated one wants its licence "
            "accepted on huggingface.co and `hf auth login`; any other a network once, or its folder")  # fmt: skip
    if not tokenizer.chat_template:
        die(f"{base_model} has no chat template: take a chat model, often the one named -chat or -Instruct")
    if quantized and not gpu and 16 * model.num_parameters() < psutil.virtual_memory().available:
        model, quantized = model.dequantize(), False  # the same rounded weights in float32: six times as fast on a CPU
        for weight in model.parameters():  # what was not rounded would hold the whole mapped file in memory
            weight.data = weight.data.clone()
    if run:
        adapter = run / "adapter"
        if not (adapter / "adapter_model.safetensors").is_file():  # or PEFT would take a pickle, or ask the hub
            die(f"{adapter / 'adapter_model.safetensors'}: no such file; delete {run / 'train.json'} and train again")
        try:
            model = PeftModel.from_pretrained(model, adapter)
        except Exception as error:  # each library has its own
            if "out of memory" in str(error):
                raise
            die(f"cannot load {adapter} ({type(error).__name__}): it is torn, or was trained on another model than {base_model}")
        if not quantized:
            model = model.merge_and_unload()
    if not gpu and not own_dtype and not quantized and torch.backends.mkldnn.is_available():
        repack(model)
    return tokenizer, model.eval()


def repack(model):
    """Hold the weights of the linear layers in the layout in which oneDNN multiplies a few rows up to twice as fast, instead of their own."""
    import torch

    onednn = torch.ops.mkldnn
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            weight = onednn._reorder_linear_weight(module.weight.data)
            module.forward = functools.partial(onednn._linear_pointwise, W=weight, B=module.bias, attr="none", scalars=[], algorithm="")
            module.to("meta")  # its own are let go


FIXED = {"enable_thinking": False, "date_string": "26 Jul 2024"}  # what some templates would add of their own: thoughts, today


@functools.cache
def controls(tokenizer):
    """(ids of the control tokens that may end a turn, ids of all that a mail must not say, pattern of their texts)."""
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    alike = {i for i, token in added.items() if re.fullmatch(r"[<\[].*[>\]]", token.content)}  # special in all but name
    texts = {added[i].content for i in (special | alike) & added.keys()} | set(tokenizer.all_special_tokens)
    texts |= {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}  # Llama 2's are plain text
    pattern = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))
    return special, (special | alike) - {tokenizer.unk_token_id}, pattern


def neutralise(tokenizer, text):
    """Break the text of every control token with a space, "<|im_end|>" to "< |im_end|>": no mail ends its turn by itself."""
    _, control, pattern = controls(tokenizer)
    text = pattern.sub(lambda match: match[0][0] + " " + match[0][1:], text)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, end) in list(zip(read.input_ids, read.offset_mapping, strict=True))[::-1]:
        if token in control:  # said in other letters, such as wide ones, to a tokenizer that takes these for the same
            text = text[:start] + " ".join(text[start:end]) + text[end:]
    return text


def encode(tokenizer, row, room):
    """One conversation as ids: {"prompt": at most `room`, "reply": the whole reply and its end of turn, "cut": bool}.

    The base model's chat template renders both. A mail too long for the room loses its end: the newest text stands first.
    Examples in front that leave it less than an eighth of the room are left out.
    What the writer wants said (row["instructions"]) stands behind the mail in the same turn, where models heed it most, and as
    a last word that no mail can take back; it and the turns after the mail (row["then"]) stay whole.
    """
    from jinja2 import TemplateError

    def tokenize(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    def render(messages, **how):
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, **FIXED, **how)
        except TemplateError as error:
            die(f"the chat template of {tokenizer.name_or_path} refuses row {row['id']} ({error}): take another model")

    def conversation():
        return [*turns, mail | {"content": mail["content"] + wish}, *then]

    place, then = len(row["prompt"]) - 1, row.get("then", [])
    messages = [*row["prompt"], *then, *row.get("completion", [{"role": "assistant", "content": "Yes."}])]
    *messages, reply = [m | {"content": neutralise(tokenizer, m["content"]).strip()} for m in messages]
    turns, mail, then = messages[:place], messages[place], messages[place + 1 :]
    wish = neutralise(tokenizer, f"\n\nIn this reply: {row['instructions'].strip()}") if row.get("instructions") else ""
    cut = False
    while len(prompt_ids := tokenize(prompt := render(conversation(), add_generation_prompt=True))) > room:
        starts = [a for a, _ in tokenizer(mail["content"], add_special_tokens=False, return_offsets_mapping=True).offset_mapping]
        keep = len(starts) - (len(prompt_ids) - room)
        if len(turns) > 1 and keep < min(len(starts), room // 8):  # behind the system message, the least similar first
            turns = turns[: len(turns) % 2] + turns[len(turns) % 2 + 2 :]
            continue
        if keep < 1:
            die(f"row {row['id']}: the prompt without its mail is longer than {room} tokens: raise --max-length")
        mail, cut = mail | {"content": mail["content"][: starts[keep]].rstrip()}, True
    whole = render([*conversation(), reply])
    if not whole.startswith(prompt):
        die(f"the chat template of {tokenizer.name_or_path} changes the prompt once a reply follows: take another model")
    reply_ids = tokenize(whole)[len(prompt_ids) :]
    if prompt_ids + reply_ids != tokenize(whole):  # a token across the border, which generation could not have seen
        reply_ids = tokenize(whole[len(prompt) :])
    end = max((place for place, token in enumerate(reply_ids, 1) if token in controls(tokenizer)[0]), default=0)
    if not end:
        die(f"the chat template of {tokenizer.name_or_path} ends a reply with no control token: the model would never stop")
    return {"prompt": prompt_ids, "reply": reply_ids[:end], "cut": cut, "scored": "completion" in row}


def with_instruction(rows, instruction):
    """The rows, with the run's own instruction in front where one has no system message."""
    return [
        row if row["prompt"][0]["role"] == "system" or not instruction
        else row | {"prompt": [{"role": "system", "content": instruction}, *row["prompt"]]}
        for row in rows
    ]  # fmt: skip


@contextlib.contextmanager
def batches(output, key):
    """(side file for this process's finished batches, {place: answer} of those that an interrupted call with the same key left in it).

    Die where another process writes it; remove it when all is done.
    """
    side, found, whole = output.with_name(f"{output.name}.batches{RANK or ''}.part"), {}, 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with side.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            die(f"{output}: another process writes it; wait for it")
        file.seek(0)
        with contextlib.suppress(ValueError):  # a line that a kill tore is the last
            for line in file:
                if not line.endswith(b"\n") or not whole and line != f'"{key}"\n'.encode():
                    break
                found |= {int(place): each for place, each in json.loads(line).items()} if whole else {}
                whole += len(line)
        file.truncate(whole)
        if not whole:
            file.write(f'"{key}"\n'.encode())
        elif found:
            print(f"{len(found)} replies are there from before")
        yield file, found
        for each in [] if RANK else output.parent.glob(f"{output.name}.batches*.part"):
            each.unlink()


def gather(answers):
    """In the first of several processes the answers of all."""
    if WORLD == 1:
        return answers
    from torch import distributed

    distributed.init_process_group("gloo", timeout=datetime.timedelta(days=1))  # answers are text, on whatever device they were made
    parts = [None] * WORLD
    distributed.gather_object(answers, None if RANK else parts)
    distributed.destroy_process_group()
    return {} if RANK else {place: found for part in parts for place, found in part.items()}


def say_cut(examples, room):
    if not RANK and (cut := sum(example["cut"] for example in examples)):
        print(f"generate.py: {cut} of {len(examples)} mails lost their end: a prompt has room for {room} tokens", file=sys.stderr)


def chat(tokenizer, model, settings, instructions):
    """Mails from standard input, each with a draft and then one draft more for every change asked for, until the input ends.

    A change sees the mail and the draft before it, not those before that: what was asked earlier shows in the draft.
    """
    context = model.config.max_position_embeddings - settings["max_new_tokens"]
    while True:
        print("The mail, its end a line with a single dot (Ctrl-D ends):", file=sys.stderr)
        lines = itertools.takewhile(lambda line: line.strip() != ".", iter(sys.stdin.readline, ""))
        row = {"id": "-", "prompt": [{"role": "user", "content": "".join(lines)}], "instructions": instructions}
        if not row["prompt"][0]["content"].strip():
            return
        room = settings.get("max_prompt", context)
        while True:
            examples = [encode(tokenizer, each, room) for each in with_instruction([row], settings["instruction"])]
            say_cut(examples, room)
            text = draft(tokenizer, model, examples[0], settings["max_new_tokens"])
            print("What to change (an empty line: the next mail):", file=sys.stderr)
            change = sys.stdin.readline().strip()
            if not change:
                break
            row["then"] = [{"role": "assistant", "content": text}, {"role": "user", "content": change}]
            room = context


def draft(tokenizer, model, example, max_new_tokens, variant=0):
    """Print a reply word by word and return it: variant 0 is the greedy one, each other a sample of its own at temperature 0.7."""
    import torch

    shown = 0

    def show(ids):
        nonlocal shown
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        words = 1 + max(map(text.rfind, " \n"))  # what follows may still change: a character can take several tokens
        print(text[shown:words], end="", flush=True)
        shown = max(shown, words)

    if variant:
        print(f"\n--- variant {variant + 1}")
    torch.manual_seed(variant)
    found = answer(tokenizer, model, [example], max_new_tokens, 1, temperature=0.7 if variant else 0, show=show)[0]
    print(found["prediction"][shown:])
    if found["finish_reason"] == "length":
        print(f"generate.py: the reply was stopped at {max_new_tokens} tokens: --max-new-tokens", file=sys.stderr)
    return found["prediction"]


def answer(tokenizer, model, examples, max_new_tokens, batch_size, file=None, found=(), temperature=0, show=None):
    """{place: answer} of this process's share of the examples: prediction and finish_reason, greedy at temperature 0, and the
    reference's reference_nll and reference_tokens, None where there is no reference.

    Mails, longest first, are read once, each with its reference; the replies go on from there.
    """
    import torch
    from tqdm import tqdm

    stop = ends(tokenizer, examples[0])
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["prompt"]))
    parts = min(len(order), WORLD * -(-len(order) // (batch_size * WORLD)))  # as many for each process, all but equally large
    share = [order[len(order) * k // parts : len(order) * (k + 1) // parts] for k in range(RANK, parts, WORLD)]
    answers = dict(found)
    with torch.inference_mode(), tqdm(total=sum(map(len, share)), unit="mail", disable=bool(show or RANK) or None) as bar:
        for batch in share:
            if batch[-1] not in answers:
                references = [examples[i]["reply"] if examples[i]["scored"] else [] for i in batch]
                *state, nats = read_together(model, [examples[i]["prompt"] for i in batch], references, bar)
                replies = decode(model, *state, stop, max_new_tokens, temperature, show)
                for i, reply, reference, nll in zip(batch, replies, references, nats, strict=True):
                    stopped = reply[-1] in stop
                    text = tokenizer.decode(reply[: len(reply) - stopped], skip_special_tokens=True).strip()
                    answers[i] = {"prediction": text, "finish_reason": "stop" if stopped else "length",
                                  "reference_nll": round(nll, 4) if reference else None, "reference_tokens": len(reference) or None}  # fmt: skip
                if file:
                    file.write(json.dumps({i: answers[i] for i in batch}).encode() + b"\n")
                    file.flush()
            bar.update(len(batch))
    return answers


def rows_at_a_time(model, tokens):
    """As many rows of so many tokens as there is room for their keys and values: 4 GB on a CPU; on a GPU what the model leaves but a
    seventh of all, for 64 rows at most."""
    import torch

    config, most, room = model.config, 256, 4e9
    if model.device.type != "cpu":
        most, room = 64, torch.cuda.get_device_properties(model.device).total_memory * 6 / 7 - model.get_memory_footprint()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * head * model.dtype.itemsize * tokens
    return max(1, min(most, int(room // row)))


def read(model, prompt, reply):
    """(logits behind the prompt (1, vocabulary), its cache, negative log-likelihood of the reply, summed, in nats).

    One pass reads prompt and reply; then the cache goes back to the end of the prompt.
    """
    import torch
    from transformers import DynamicCache

    ids, cache = torch.tensor([prompt + reply], device=model.device), DynamicCache(config=model.config)
    if reply:
        cache.activate_past_recording()  # or a sliding window would have let go what the way back needs
    logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=len(reply) + 1).logits[0]
    if reply:
        cache.crop(-len(reply))
    steps = zip(logits[:-1].split(256), ids[0, len(prompt) :].split(256), strict=True)  # in single precision few at a time: the vocabulary is large
    nats = sum(torch.nn.functional.cross_entropy(each.float(), tokens, reduction="sum").item() for each, tokens in steps)
    return logits[:1].clone(), cache, nats


def changes_in_use(model):
    """Whether a forward pass changes what another one reads: 4-bit layers repack their weights in the first one, and some rotary
    embeddings take the frequencies that suit the length."""
    kinds = [str(getattr(module, "rope_type", "")) for module in model.modules()]
    return getattr(model, "is_quantized", False) or any("dynamic" in kind or "longrope" in kind for kind in kinds)


def ends(tokenizer, example):
    """The tokens that end a reply."""
    return {example["reply"][-1], tokenizer.eos_token_id}


def read_together(model, prompts, replies, bar=None, room=32):
    """(logits, cache, mask) of one batch of prompts, the longest first, and what read() gives for each reply.

    They are read alone, so that there is no padding; on a CPU two at a time, each on half of the cores, which small matrices keep
    busier so. Each cache is put in its place at once, padded on the left, with room for new tokens behind it, and let go.
    """
    import torch
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        """Keys and values with room behind them: a token comes, or a row goes, without a copy of all the others."""

        def __init__(self, layer):
            super().__init__()
            self.lazy_initialization(layer.keys, layer.values)
            self.store = [blank(each, room) for each in (layer.keys, layer.values)]
            self.show(layer.get_seq_length())

        def show(self, width):
            self.keys, self.values = (each[:, :, :width] for each in self.store)

        def update(self, keys, values, *args, **kwargs):
            width = self.get_seq_length()
            if width + keys.shape[2] > self.store[0].shape[2]:
                self.store = [torch.nn.functional.pad(each, (0, 0, 0, room)) for each in self.store]
            self.show(width + keys.shape[2])
            self.keys[:, :, width:], self.values[:, :, width:] = keys, values
            return self.keys, self.values

        def batch_select_indices(self, indices):
            moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
            for each in self.store:
                each[moved] = each[indices[moved]]
            self.store = [each[: len(indices)] for each in self.store]
            self.show(self.get_seq_length())

    def blank(part, room=0):
        return part.new_zeros(len(prompts), part.shape[1], part.shape[2] + room, part.shape[3])

    def widen(layer):
        if type(layer) is DynamicLayer:
            return RoomyLayer(layer)
        layer = copy.copy(layer)  # one that sees only a window, or the keys of another layer
        if layer.keys is not None:
            layer.keys, layer.values = blank(layer.keys), blank(layer.values)
        return layer

    @torch.inference_mode()  # which every thread has to say
    def read_one(pair):
        return read(model, *pair)

    logits, nats, cores, side_by_side = [], [], torch.get_num_threads(), map
    with contextlib.ExitStack() as stack:
        if model.device.type == "cpu" and min(cores, len(prompts)) > 1 and not changes_in_use(model):
            stack.callback(torch.set_num_threads, cores)
            torch.set_num_threads(cores // 2)
            side_by_side = stack.enter_context(ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=[cores // 2])).map
        for row, (found, one, nll) in enumerate(side_by_side(read_one, zip(prompts, replies, strict=True))):
            logits.append(found)
            nats.append(nll)
            if not row:
                cache = copy.copy(one)
                cache.layers = [widen(layer) for layer in one.layers]
            for layer, own in zip(cache.layers, one.layers, strict=True):
                if own.keys is not None:
                    width = own.keys.shape[2]
                    layer.keys[row, :, -width:], layer.values[row, :, -width:] = own.keys[0], own.values[0]
            if bar is not None:
                bar.set_postfix(read=row + 1)
    padding = torch.tensor([[len(prompts[0]) - len(prompt)] for prompt in prompts], device=model.device)
    return torch.cat(logits), cache, (torch.arange(len(prompts[0]), device=model.device) >= padding).long(), nats


def decode(model, logits, cache, mask, stop, max_new_tokens, temperature=0, show=None):
    """Token ids of each row, up to its end of turn. Rows that have ended leave the batch. `show` gets the first row's so far."""
    import torch

    rows, replies = list(range(len(mask))), [[] for _ in mask]
    while True:
        tokens = torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0] if temperature else logits.argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            replies[row].append(token)
        if show:
            show(replies[0])
        going = [place for place, row in enumerate(rows) if replies[row][-1] not in stop]
        if not going or len(replies[rows[going[0]]]) == max_new_tokens:
            return replies
        if len(going) < len(rows):
            n = len(going)  # who stands behind the others moves into the places that are free
            behind = iter(place for place in going if place >= n)
            going = [place if place in going else next(behind) for place in range(n)]
            kept = torch.tensor(going, device=mask.device)
            rows, tokens, mask = [rows[place] for place in going], tokens[kept], mask[kept]
            cache.batch_select_indices(kept)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = model(input_ids=tokens[:, None], attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1,
                       past_key_values=cache).logits[:, -1]  # fmt: skip


def write_baseline(kind, train_data, rows, output):
    """Copied replies as a run: predictions without likelihood, and baseline.json, which says what they were copied from."""
    pairs = [(row["prompt"][-1]["content"], row["completion"][-1]["content"]) for row in read_jsonl(train_data) if "completion" in row]
    if not pairs:
        die(f"{train_data}: no replies to copy; `prepare_data.py format` makes training mails")
    mails, replies = zip(*pairs, strict=True)
    if kind == "constant":  # in whatever layout and case; of equally frequent ones the shortest
        keys = [" ".join(re.findall(r"\w+", reply.lower())) for reply in replies]
        copied = [min(range(len(keys)), key=lambda i: (-keys.count(keys[i]), len(keys[i])))] * len(rows)
    else:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
        known = vectorizer.fit_transform(mails)
        copied = (vectorizer.transform([row["prompt"][-1]["content"] for row in rows]) @ known.T).toarray().argmax(1)
    unknown = {"finish_reason": None, "reference_nll": None, "reference_tokens": None}
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"baseline": kind, "train_data": str(train_data), "train_data_sha256": hashlib.sha256(train_data.read_bytes()).hexdigest()}
    output.with_name("baseline.json").write_text(json.dumps(facts, indent=1))
    write(output, rows, [{"prediction": replies[i].strip(), **unknown} for i in copied])


def export(settings, run, folder):
    """The adapter merged into the unrounded base model, whole or not at all: loads in transformers and vLLM, and in Ollama by its Modelfile."""
    from transformers import GenerationConfig

    if folder.exists() and not (folder / "Modelfile").is_file():
        die(f"{folder} is there and no export: name another folder")
    tokenizer, model = load(settings | {"quantization": "none"}, run, own_dtype=True)
    row = {"id": "-", "prompt": [{"role": "user", "content": "Hello"}]}
    (asked,) = with_instruction([row], settings["instruction"])
    context = model.config.max_position_embeddings
    stop = ends(tokenizer, encode(tokenizer, asked, context))
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=settings["max_new_tokens"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(stop),
        pad_token_id=next(i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) if i is not None),
    )
    instruction = neutralise(tokenizer, settings["instruction"] or "").strip()
    go_template = modelfile_template(tokenizer, instruction)
    tokenizer.chat_template = own_template(tokenizer, instruction)
    side = folder.with_name(folder.name + ".part")
    shutil.rmtree(side, ignore_errors=True)
    model.save_pretrained(side)
    tokenizer.save_pretrained(side)
    (side / "README.md").write_text(card(run), encoding="utf-8")
    parameters = [f'stop "{tokenizer.decode([token])}"' for token in sorted(stop)]
    parameters += ["temperature 0", f"num_predict {settings['max_new_tokens']}", f"num_ctx {min(context, 4096)}"]
    lines = ["FROM .", f'TEMPLATE """{go_template}"""', *(f"PARAMETER {each}" for each in parameters)]
    if instruction:
        lines.append('SYSTEM """' + instruction.replace('"""', "'''") + '"""')
    (side / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(side, folder)
    print(f"{folder}: the merged model in {str(model.dtype).removeprefix('torch.')}, its model card README.md, and a Modelfile for Ollama")


def own_template(tokenizer, instruction):
    """The chat template with what training asked with: FIXED, and the instruction where a conversation has no system message."""
    lines = [f"{{% set {name} = {json.dumps(value)} %}}" for name, value in FIXED.items()]
    if instruction:
        system = json.dumps({"role": "system", "content": instruction}, ensure_ascii=False)
        lines.append(f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = [{system}] + messages %}}{{% endif %}}")
    return "\n".join([*lines, tokenizer.get_chat_template()])


def modelfile_template(tokenizer, instruction):
    """The chat template in Go's language as Ollama fills it in, once a turn, with .System in the first alone.

    What the chat template makes of placeholders, cut where the turns meet, needs no list of known templates.
    """

    def render(*turns):
        contents = {"system": "{{ .System }}", "user": "{{ .Prompt }}", "assistant": "{{ .Response }}"}
        messages = [{"role": role, "content": contents[role]} for role in turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=turns[-1] == "user", **FIXED)
        bos = tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        return text.removeprefix(tokenizer.bos_token) if bos else text  # Ollama puts it there itself

    first = render(*["system"] * bool(instruction), "user")
    _, closing = render("user", "assistant").split("{{ .Response }}")
    later = render("user", "assistant", "user").split("{{ .Response }}")[1].removeprefix(closing) if instruction else first
    return f"{{{{ if .System }}}}{first}{{{{ else }}}}{later}{{{{ end }}}}{{{{ .Response }}}}{closing}"


def card(run):
    """The adapter's model card for the merged model, with the run's scores where it has been scored."""
    text = (run / "adapter" / "README.md").read_text(encoding="utf-8").replace("library_name: peft", "library_name: transformers")
    if (run / "metrics.json").is_file():
        scores = json.loads((run / "metrics.json").read_text())
        text += f"\n| on {scores['n']} test mails | value | 95 % interval |\n|---|---|---|\n"
        for name, score in scores["metrics"].items():
            if score and score["value"] is not None:
                text += f"| {name} | {score['value']:.4g} | {score['low']:.4g} to {score['high']:.4g} |\n"
    return text


def write(path, rows, answers):
    """predictions.jsonl in the order of the rows, whole or not at all, and the headline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + ".part")
    with side.open("w", encoding="utf-8") as file:
        for row, found in zip(rows, answers, strict=True):
            line = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
            line |= {"mail": row["prompt"][-1]["content"], "reference": None} | found
            if "completion" in row:
                line["reference"] = row["completion"][0]["content"]
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(side, path)
    reasons = [found["finish_reason"] for found in answers]
    ends = f"{reasons.count('stop')} stopped by themselves, {reasons.count('length')} hit the length limit"
    print(f"{path}: {len(rows)} replies, {'copied' if None in reasons else ends}")


if __name__ == "__main__":
    for each in signal.SIGINT, signal.SIGTERM:  # Ctrl-C; a machine that is taken away
        signal.signal(each, leave)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # each library has its own for these
        if any(words in str(error) for words in ("No space left", "inline_container")):
            die("no space left on the disk: free some and run the same command again")
        if any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            die("out of memory: lower --batch-size")
        if isinstance(error, OSError):
            die(error)
        raise
