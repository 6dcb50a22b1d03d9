"""Fine-tune a chat model on one author's replies: base model in NF4, LoRA adapter, loss on the reply alone.

  python train.py --base-model models/SmolLM2-135M-Instruct --train-data data/sample/maud_okafor_train_43.jsonl \\
                  --output-dir runs/try/maud
  python train.py --base-model meta-llama/Llama-2-7b-chat-hf --train-data data/experience1/jeff_dasovich_train_625.jsonl \\
                  --output-dir runs/experience1/exp1.J-J

Prints its settings, one example with the trained part marked, the losses, and last the folder it wrote: adapter/, log/,
loss_curve.png, training_duration.txt and, as the mark of a finished run, train.json. The first takes a minute on two CPU
cores, the second hours on a GPU. The same command goes on with an interrupted training and leaves a finished one alone.
"""

import argparse
import contextlib
import ctypes
import datetime
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import platform
import re
import resource
import shutil
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

# With a GPU: the settings published for 7B models (QLoRA, arXiv:2305.14314, appendix B.2), for the study's three epochs.
# Without: chosen for the embedded model on validation mail (README, "How the settings were chosen").
DEFAULTS = {  # GPU, CPU
    "epochs": (3, 1),
    "learning_rate": (2e-4, 1e-3),
    "batch_size": (16, 4),
    "rank": (64, 16),
    "alpha": (16, 32),
    "dropout": (0.1, 0.0),
    "max_length": (2048, 512),
    "max_reply_length": (512, 192),
    "micro_batch_tokens": (4096, 256),
}
FREE_TO_CHANGE = {"train_data", "micro_batch_tokens", "gradient_checkpointing", "attention", "checkpoint_minutes"}  # no other result


def main(argv=None):
    os.umask(0o077)  # private mail, and a model made of it, are their owner's alone
    sys.modules["kernels"] = None  # with this package the libraries would fetch code from a hub, unasked, and run it
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # misses it aloud
    with contextlib.suppress(AttributeError, TypeError):  # glibc alone has it, and would keep memory of its own for each thread
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX
    args = parse_args(argv)
    if int(os.environ.get("RANK", "0")):  # of several processes the first one speaks
        sys.stdout = open(os.devnull, "w")
    rows = read_jsonl(args.train_data)[: args.limit]
    settings = fill_defaults(args, rows)
    with alone_in(args.output_dir):
        if is_done(args.output_dir, settings):
            return
        tokenizer = load_tokenizer(args.base_model)
        examples = [join(encode(tokenizer, row, settings["max_prompt"]), settings["max_reply_length"]) for row in rows]
        train_set, validation_set = split(examples, settings["validation_fraction"])
        show(tokenizer, train_set, validation_set)
        model = load_model(settings)
        history, seconds = train(model, tokenizer, train_set, validation_set, settings, args.output_dir)
        save(model, tokenizer, train_set, validation_set, history, seconds, settings, args.output_dir)


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = die  # one line, without the usage
    default = {name: f"(default {gpu} with a GPU, {cpu} without)" for name, (gpu, cpu) in DEFAULTS.items()}
    files = parser.add_argument_group("files")
    files.add_argument("--base-model", metavar="M", required=True, help="chat model, a folder or its name on the hub")
    files.add_argument("--train-data", metavar="JSONL", type=Path, required=True, help="from `prepare_data.py format`")
    files.add_argument("--output-dir", metavar="DIR", type=Path, required=True, help="run folder, runs/GROUP/NAME")
    files.add_argument("--limit", metavar="N", type=positive(int), help="train on the first N rows (default all)")
    method = parser.add_argument_group("method")
    method.add_argument("--epochs", type=positive(float), help=default["epochs"])
    method.add_argument("--learning-rate", type=positive(float), help="peak of the cosine " + default["learning_rate"])
    method.add_argument("--batch-size", type=positive(int), help="examples an update " + default["batch_size"])
    method.add_argument("--rank", type=positive(int), help="of the LoRA matrices " + default["rank"])
    method.add_argument("--alpha", type=positive(float), help="LoRA scale times rank " + default["alpha"])
    method.add_argument("--dropout", type=fraction, help="of LoRA's input " + default["dropout"])
    method.add_argument("--max-length", type=positive(int), help="tokens of an example " + default["max_length"])
    method.add_argument("--max-reply-length", type=positive(int), help="tokens of its reply; the prompt gets the others, "
                        "a longer mail loses its end " + default["max_reply_length"])  # fmt: skip
    method.add_argument("--validation-fraction", type=fraction, default=0.05,
                        help="share of the rows held out for the validation loss, every 20th for %(default)s; 0 for none")  # fmt: skip
    method.add_argument("--seed", type=seed, default=42, help="(default %(default)s)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--quantization", choices=["4bit", "none"], default="4bit", help="NF4 or none (default %(default)s)")
    machine.add_argument("--checkpoint-minutes", type=positive(float), default=5, help="at most so much is lost when training is "
                         "interrupted (default %(default)s)")  # fmt: skip
    machine.add_argument("--micro-batch-tokens", metavar="N", type=positive(int), help="tokens of a forward pass, padding counted; lower "
                         "it when memory runs out, the loss stays the same " + default["micro_batch_tokens"])  # fmt: skip
    machine.add_argument("--gradient-checkpointing", choices=["auto", "on", "off"], default="auto", help="compute activations anew in the "
                         "backward pass, slower and smaller; auto: on a GPU that cannot hold them (default %(default)s)")  # fmt: skip
    machine.add_argument("--attention", choices=["sdpa", "flash_attention_2"], default="sdpa",
                         help="the second wants the package flash-attn (default %(default)s)")  # fmt: skip
    return parser.parse_args(argv)


def positive(kind):
    def parse(text):
        if not 0 < kind(text) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return kind(text)

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def fraction(text):
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return float(text)


def seed(text):
    if not 0 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 2147483648)")
    return int(text)


def die(message):
    """End on a user's mistake: one line on standard error, exit status 2."""
    print(f"train.py: error: {message}", file=sys.stderr)
    sys.exit(2)


STOPS = signal.SIGINT, signal.SIGTERM  # Ctrl-C; a machine that is taken away


def leave(number, frame=None):
    print("train.py: interrupted; the same command goes on", file=sys.stderr)
    sys.exit(128 + number)


ROLES = {"system", "user", "assistant"}  # a role stands in the prompt as it is


def read_jsonl(path):
    """The rows of a prompt/completion file, each {"id": str, "prompt": [message, ...], "completion": [message]}."""
    if not path.is_file():
        die(f"{path}: no such file; `prepare_data.py format` makes it")
    rows, ids = [], set()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            turns = [(message["role"], message["content"].strip()) for message in row["prompt"] + row["completion"]]
            json.dumps(row, ensure_ascii=False).encode()  # half a character is no text
            if row["id"] + "" in ids:
                die(f"{path}, line {number}: id {row['id']} stands there twice")
            if [role for role, _ in turns[-2:]] != ["user", "assistant"] or not turns[-1][1] or not {role for role, _ in turns} <= ROLES:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            die(f"{path}, line {number}: not a row of id, prompt and completion; `prepare_data.py format` makes them")
        ids.add(row["id"])
        rows.append(row)
    if not rows:
        die(f"{path}: no rows")
    return rows


def fill_defaults(args, rows):
    """All that decides the result in one dict: flags, the hardware's defaults, the data's hash and its instruction."""
    import torch

    gpu = torch.cuda.is_available()
    settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
    settings |= {name: pair[0 if gpu else 1] for name, pair in DEFAULTS.items() if settings[name] is None}
    if settings["validation_fraction"] > 0.5:
        die(f"--validation-fraction {settings['validation_fraction']} is more than half")
    if settings["max_reply_length"] >= settings["max_length"]:
        die(f"--max-length {settings['max_length']} is not above --max-reply-length {settings['max_reply_length']}")
    system = rows[0]["prompt"][0]
    settings |= {
        "max_prompt": settings["max_length"] - settings["max_reply_length"],  # the same in generation, whatever the reply
        "train_data": str(args.train_data),
        "train_data_sha256": hashlib.sha256(args.train_data.read_bytes()).hexdigest(),
        "instruction": system["content"] if system["role"] == "system" else None,
    }
    print(f"train.py on {torch.cuda.get_device_name() if gpu else 'the CPU (no NVIDIA GPU)'}")
    print("\n".join(f"  {name}: {value}" for name, value in settings.items()))
    return settings


@contextlib.contextmanager
def alone_in(run):
    """Hold the run folder, rank 0 for all ranks; die where another process holds it. What a killed one held is free."""
    if int(os.environ.get("RANK", "0")):
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    folder = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            die(f"{run}: another process trains here; wait for it, then the same command goes on")
        yield
    finally:
        os.close(folder)


def is_done(run, settings):
    """True where this very training is finished; dies where the folder holds another one, finished or interrupted."""
    mark = run / "train.json"
    if mark.exists() or (run / "checkpoints").exists():  # a start that failed claims nothing
        file = mark if mark.exists() else run / "settings.json"
        try:
            old = json.loads(file.read_bytes()) | {}
        except (ValueError, TypeError):
            die(f"{file}: not JSON; choose another folder or delete {run}")
        same = settings.keys() - FREE_TO_CHANGE
        changes = [f"{name} {old.get(name)!r} -> {settings[name]!r}" for name in sorted(same) if old.get(name) != settings[name]]
        if changes:
            die(f"{run} holds a training with other settings ({', '.join(changes)}): choose another folder or delete it")
    if mark.exists():
        tidy(run)  # a kill came between
        os.utime(mark)  # newer than its data again, for make
        print(f"{mark} is there with these settings: nothing to be done")
        return True
    if not int(os.environ.get("RANK", "0")):
        text = json.dumps(settings, indent=1)
        if not (run / "checkpoints").exists() and not ((run / "settings.json").exists() and (run / "settings.json").read_text() == text):
            (run / "training_duration.txt").unlink(missing_ok=True)  # of a start that failed
        write(run / "settings.json", text)
    return False


def tidy(run):
    """Remove what a finished training needs no more: train.json holds the settings."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "settings.json").unlink(missing_ok=True)


def write(path, text):
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + ".part")
    side.write_text(text)
    os.replace(side, path)


def load_tokenizer(base_model):
    from transformers import AutoTokenizer

    try:
        tokenizer = fetch(AutoTokenizer, base_model)
    except (OSError, ValueError) as error:
        die_loading(base_model, error)
    if not tokenizer.chat_template:
        die(f"{base_model} has no chat template: take a chat model, often the one named -chat or -Instruct")
    return tokenizer


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


def die_loading(base_model, error):
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    die(f"cannot load {base_model} ({reason}): the embedded model is made by `make model`; a gated one wants its licence "
        "accepted on huggingface.co and `hf auth login`; any other a network once, or its folder")  # fmt: skip


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
    """
    from jinja2 import TemplateError

    def tokenize(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    def render(messages, **how):
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, **FIXED, **how)
        except TemplateError as error:
            die(f"the chat template of {tokenizer.name_or_path} refuses row {row['id']} ({error}): take another model")

    messages = [*row["prompt"], *row.get("completion", [{"role": "assistant", "content": "Yes."}])]
    *turns, mail, reply = [m | {"content": neutralise(tokenizer, m["content"]).strip()} for m in messages]
    cut = False
    while len(prompt_ids := tokenize(prompt := render([*turns, mail], add_generation_prompt=True))) > room:
        starts = [a for a, _ in tokenizer(mail["content"], add_special_tokens=False, return_offsets_mapping=True).offset_mapping]
        keep = len(starts) - (len(prompt_ids) - room)
        if len(turns) > 1 and keep < min(len(starts), room // 8):  # behind the system message, the least similar first
            turns = turns[: len(turns) % 2] + turns[len(turns) % 2 + 2 :]
            continue
        if keep < 1:
            die(f"row {row['id']}: the prompt without its mail is longer than {room} tokens: raise --max-length")
        mail, cut = mail | {"content": mail["content"][: starts[keep]].rstrip()}, True
    whole = render([*turns, mail, reply])
    if not whole.startswith(prompt):
        die(f"the chat template of {tokenizer.name_or_path} changes the prompt once a reply follows: take another model")
    reply_ids = tokenize(whole)[len(prompt_ids) :]
    if prompt_ids + reply_ids != tokenize(whole):  # a token across the border, which generation could not have seen
        reply_ids = tokenize(whole[len(prompt) :])
    end = max((place for place, token in enumerate(reply_ids, 1) if token in controls(tokenizer)[0]), default=0)
    if not end:
        die(f"the chat template of {tokenizer.name_or_path} ends a reply with no control token: the model would never stop")
    return {"prompt": prompt_ids, "reply": reply_ids[:end], "cut": cut}


def join(example, max_reply):
    """Prompt and reply as {"input_ids": list, "reply": trained ids at its end, of which the last always ends the turn, ...}."""
    *reply, end = example["reply"]
    reply_ids = [*reply[: max_reply - 1], end]
    return {
        "input_ids": example["prompt"] + reply_ids,
        "reply": len(reply_ids),
        "length": len(example["prompt"]) + len(reply_ids),
        "mail_cut": example["cut"],
        "reply_cut": len(reply) >= max_reply,
    }


def split(examples, fraction):
    """(training, validation) examples; validation is every k-th row, so that both parts of the first n rows are nested in n."""
    k = round(1 / fraction) if fraction else len(examples) + 1
    held_out = examples[k - 1 :: k]
    return [example for place, example in enumerate(examples, 1) if place % k], held_out


def show(tokenizer, train_set, validation_set):
    def total(name):
        return sum(example[name] for example in train_set)

    print(f"{len(train_set)} training rows of {total('length'):,} tokens, {total('reply'):,} of them trained, and {len(validation_set)} "
          f"validation rows; {total('mail_cut')} mails and {total('reply_cut')} replies lost their end")  # fmt: skip
    ids, n = train_set[0]["input_ids"], train_set[0]["reply"]
    print(f"the first, its trained part between >>> and <<<:\n{tokenizer.decode(ids[:-n])}>>>{tokenizer.decode(ids[-n:])}<<<")


def load_model(settings):
    """The base model in NF4 (or 16/32 bit) on this process's device, with a fresh LoRA adapter on all linear layers."""
    import psutil
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, logging, set_seed

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
    try:
        model = fetch(
            AutoModelForCausalLM,
            settings["base_model"],
            dtype=dtype,
            device_map={"": int(os.environ.get("LOCAL_RANK", "0")) if gpu else "cpu"},
            quantization_config=nf4 if settings["quantization"] == "4bit" else None,
            attn_implementation=settings["attention"],
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError) as error:
        die_loading(settings["base_model"], error)
    if settings["quantization"] == "4bit" and not gpu and 16 * model.num_parameters() < psutil.virtual_memory().available:
        model = model.dequantize()  # the same rounded weights in float32, a tenth faster where they are small
        for weight in model.parameters():  # what was not rounded would hold the whole mapped file in memory
            weight.data = weight.data.clone()
    for module in model.modules():  # or the first validation takes NF4 layers into a layout for AVX512-BF16 that has no gradient
        module.support_avx512bf16_for_cpu = False
    model.config.use_cache = False
    if settings["gradient_checkpointing"] == "on" or settings["gradient_checkpointing"] == "auto" and gpu and not fits(model, settings):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()  # or no gradient reaches the adapters behind frozen embeddings
    set_seed(settings["seed"])  # before LoRA draws its random matrices
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            target_modules="all-linear",
            r=settings["rank"],
            lora_alpha=settings["alpha"],
            lora_dropout=settings["dropout"],
        ),
    )
    model.print_trainable_parameters()
    if not (gpu or settings["dropout"]):
        fuse_lora(model)
    return model


def fuse_lora(model):
    """On a CPU, one differentiable function for each adapted linear layer in place of PEFT's chain of them, where it holds plain weights.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ (LoRA, arXiv:2106.09685, section 4.1): the matrix routine adds the second product to the first, so that no
    pass over the memory scales it or adds it. x is (tokens, in), W (out, in), A (rank, in), B (out, rank).
    """
    import torch
    from peft.tuners.lora import Linear

    class FusedLoRA(torch.autograd.Function):
        @staticmethod
        def forward(context, x, base, a, b, scale):
            rows = x.flatten(0, -2)
            down = rows @ a.T
            context.save_for_backward(rows, base.weight, a, b, down)
            context.shape, context.scale = x.shape, scale
            return torch.nn.functional.linear(rows, base.weight, base.bias).addmm_(down, b.T, alpha=scale).unflatten(0, x.shape[:-1])

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, gradient):
            rows, weight, a, b, down = context.saved_tensors
            gradient = gradient.flatten(0, -2)
            up = gradient @ b * context.scale
            behind = (gradient @ weight).addmm_(up, a).view(context.shape) if context.needs_input_grad[0] else None
            return behind, None, up.T @ rows, gradient.T @ down * context.scale, None

    def forward(layer, x):
        ((name, scale),) = layer.scaling.items()
        return FusedLoRA.apply(x, layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight, scale)

    for layer in model.modules():
        if isinstance(layer, Linear) and type(layer.base_layer) is torch.nn.Linear:
            layer.forward = functools.partial(forward, layer)


def fits(model, settings):
    """Whether the GPU's free memory holds what a forward pass keeps for the backward one. A token takes 35 numbers a layer and unit
    of the hidden size (29 are kept with Llama 2, 31 with Llama 3; the others are for adapter, optimizer and fragments) and 12 bytes
    a word of the vocabulary, the most that its logits and their gradients take at once."""
    import torch

    config = model.config
    token = 35 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize + 12 * config.vocab_size
    return token * settings["micro_batch_tokens"] < torch.cuda.mem_get_info(model.device)[0]


def micro_batches(examples, budget):
    """A batch in parts of at most `budget` tokens with their padding, longest first; a longer example stands alone."""
    parts = []
    for example in sorted(examples, key=lambda example: -example["length"]):
        if not parts or (len(parts[-1]) + 1) * parts[-1][0]["length"] > budget:
            parts.append([])
        parts[-1].append(example)
    return parts


def collate(examples, pad):
    """Tensors of shape (batch, longest), padded on the right, and labels of shape (batch, K).

    K reaches from in front of the first reply to the end: the model projects these last positions alone to the vocabulary
    (logits_to_keep), which gives exactly the loss on the replies. The position in front of a reply predicts its first token.
    No token sees what stands behind it, so the padding needs no mask, and attention without one is faster.
    """
    import torch

    width = max(x["length"] for x in examples)
    first = min(x["length"] - x["reply"] for x in examples) - 1
    tensors = {
        "input_ids": [x["input_ids"] + [pad] * (width - x["length"]) for x in examples],
        "labels": [
            [-100] * (x["length"] - x["reply"] - first) + x["input_ids"][-x["reply"] :] + [-100] * (width - x["length"])
            for x in examples
        ],
    }
    return {name: torch.tensor(value) for name, value in tensors.items()} | {"logits_to_keep": width - first}


def train(model, tokenizer, train_set, validation_set, settings, run):
    """Train, from the last checkpoint where there is one; the Trainer's log (list of dicts) and the seconds of all parts."""
    import torch
    from datasets import Dataset
    from tqdm import tqdm
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class MicroBatchTrainer(Trainer):
        """Takes a batch in parts that fit the memory: their gradients add up to those of the whole batch. On a CPU two parts at
        a time, each on half of the cores: small matrices do not keep many cores busy."""

        def _get_train_sampler(self, dataset=None):  # by the whole batch, so that the order is the same for any number of processes
            return LengthGroupedSampler(settings["batch_size"], lengths=[example["length"] for example in train_set])

        def training_step(self, model, inputs, num_items_in_batch=None):
            def gradients(part):
                loss = self.compute_loss(model, part, num_items_in_batch=num_items_in_batch)
                return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)

            if pool:
                model.train()
                losses = []
                for loss, found in pool.map(gradients, inputs["parts"]):  # in their order, whichever is ready first
                    losses.append(loss)
                    for weight, gradient in zip(weights, found, strict=True):
                        if gradient is not None:
                            weight.grad = gradient if weight.grad is None else weight.grad + gradient
                return sum(losses)
            *parts, last = inputs["parts"]
            with self.accelerator.no_sync(model):  # processes may have more parts or fewer, and meet once a batch
                losses = [super(MicroBatchTrainer, self).training_step(model, part, num_items_in_batch) for part in parts]
            return sum(losses) + super().training_step(model, last, num_items_in_batch)

        def _load_rng_state(self, checkpoint):
            if self.state.epoch % 1:  # at the end of an epoch the next one has its seed already, which this would undo
                super()._load_rng_state(checkpoint)

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            n = self._get_num_items_in_batch([inputs], self.args.device)

            @torch.no_grad()
            def loss(part):
                return self.compute_loss(model, self._prepare_inputs(part), num_items_in_batch=n)

            return sum((pool.map if pool else map)(loss, inputs["parts"])), None, None

    def collate_parts(examples):
        parts = [collate(part, pad) for part in micro_batches(examples, settings["micro_batch_tokens"])]
        return {"parts": parts, "labels": torch.cat([part["labels"].flatten() for part in parts])}  # the Trainer counts these

    class Clock(TrainerCallback):
        """Shows and saves by the clock; keeps the seconds in the file for people, so that a resumed training counts on."""

        signal = None

        def on_signal(self, number, frame):
            self.signal = number
            signal.signal(number, leave)  # whoever asks twice will not wait for the end of the update

        def on_train_begin(self, args, state, control, **kwargs):
            before = float(file.read_text().split()[-2]) if file.exists() else 0
            self.start = time.monotonic() - before
            self.saved = time.monotonic()
            self.bar = tqdm(total=state.max_steps, unit="update", disable=None)
            self.on_step_end(args, state, control)

        def on_epoch_begin(self, args, state, control, **kwargs):
            set_seed(settings["seed"] + int(state.epoch))  # the order of an epoch is the same when it is resumed

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                self.bar.set_postfix(loss=logs["loss"])
                lost = [name for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name, 0))]
                if lost and not (args.fp16 and lost == ["grad_norm"]):  # fp16 leaves out such an update by itself
                    die(f"update {state.global_step}: {lost[0]} is {logs[lost[0]]}; the checkpoints before it stand in {checkpoints}: "
                        "take a lower --learning-rate and another --output-dir")  # fmt: skip

        def on_save(self, args, state, control, **kwargs):
            trainer.accelerator.wait_for_everyone()
            if state.is_world_process_zero:
                folder = checkpoints / f"checkpoint-{state.global_step}"
                write(folder / "sha256.json", json.dumps(sums(folder)))  # the last file of a whole checkpoint

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            if state.is_world_process_zero:
                print(f"  update {state.global_step} of {state.max_steps}: validation loss {metrics['eval_loss']:.3f}", flush=True)

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds = time.monotonic() - self.start
            self.bar.update(state.global_step - self.bar.n)
            wishes = [bool(self.signal), time.monotonic() - self.saved > 60 * settings["checkpoint_minutes"]]
            stop, save = trainer.accelerator.reduce(torch.tensor(wishes, device=args.device).long()).tolist()  # all ranks or none
            control.should_training_stop = control.should_training_stop or bool(stop)
            if (stop or save) and state.global_step:
                control.should_save, self.saved = True, time.monotonic()
            if state.is_world_process_zero:
                h_mm_ss = datetime.timedelta(seconds=round(self.seconds))
                write(file, f"The training took {h_mm_ss} (h:mm:ss), {self.seconds:.1f} seconds\n")

    gpu = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    file, checkpoints = run / "training_duration.txt", run / "checkpoints"
    checkpoint = last_whole(checkpoints)
    rows_each, rest = divmod(settings["batch_size"], world)
    if rest:
        die(f"--batch-size {settings['batch_size']} is no multiple of the {world} processes")
    updates = math.ceil(settings["epochs"] * math.ceil(len(train_set) / settings["batch_size"]))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run / "log")
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) if i is not None)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=rows_each,
        per_device_eval_batch_size=-(-len(validation_set) // world) or 1,  # one batch: its loss is the mean over tokens
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.1 if updates > 1 else 0,  # a share of all steps, as is the next; the first of a warmup learns nothing
        eval_steps=0.25,
        eval_strategy="steps" if validation_set else "no",
        save_strategy="no",  # the clock says when
        save_total_limit=2,
        prediction_loss_only=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="tensorboard",
        optim="paged_adamw_8bit" if gpu else "adamw_torch",
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        use_cpu=not gpu,
        disable_tqdm=True,  # the clock has a bar
        remove_unused_columns=False,
        seed=settings["seed"],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # or a second GPU would change the batch; LAUNCH uses it
    trainer = MicroBatchTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train_set),  # in memory: private mail stays out of the library's cache
        eval_dataset=Dataset.from_list(validation_set) if validation_set else None,
        data_collator=collate_parts,
        callbacks=[clock := Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    cores, pool = torch.get_num_threads(), None
    noise = [value for name, value in model.config.to_dict().items() if ("drop" in name or "jitter" in name) and value]
    kinds = [str(getattr(module, "rope_type", "")) for module in model.modules()]  # two take the frequencies that suit a part's length
    shared = noise or any("dynamic" in kind or "longrope" in kind for kind in kinds)  # noise comes from one row of random numbers
    if not (gpu or world > 1 or cores == 1 or settings["dropout"] or shared):
        torch.set_num_threads(cores // 2)
        pool = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=[cores // 2])
    before = {number: signal.signal(number, clock.on_signal) for number in STOPS}
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        torch.set_num_threads(cores)
    if clock.signal and trainer.state.global_step < trainer.state.max_steps:
        leave(clock.signal)
    return trainer.state.log_history, clock.seconds


def sums(folder):
    """{name: SHA-256} of a checkpoint's files, never whole in memory: an optimizer takes a gigabyte."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != "sha256.json":
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def last_whole(checkpoints):
    """The newest checkpoint that is as it was saved, None if there is none; later ones are removed, with a line."""
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=lambda folder: -int(folder.name[11:])):
        with contextlib.suppress(OSError, ValueError):  # no sums, as in one that a kill tore
            found = sums(folder)
            if found == json.loads((folder / "sha256.json").read_bytes()) and "adapter_model.safetensors" in found:
                return str(folder)
        if not int(os.environ.get("RANK", "0")):
            print(f"{folder} is torn: passed over", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
    return None


def save(model, tokenizer, train_set, validation_set, history, seconds, settings, run):
    """Write adapter, picture and, last, train.json; then the checkpoints have done their work."""
    import torch

    if int(os.environ.get("RANK", "0")):
        return
    trained = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert any(weight.any() for weight in trained), f"all {len(trained)} lora_B are zero: nothing was trained"
    side, adapter = run / "adapter.part", run / "adapter"
    model.save_pretrained(side, save_embedding_layers=False)  # "auto" would ask the hub
    tokenizer.save_pretrained(side)
    shutil.rmtree(adapter, ignore_errors=True)
    os.replace(side, adapter)
    draw(history, run / "loss_curve.png")

    tokens = sum(example["length"] for example in train_set)
    losses, validation = ([entry[name] for entry in history if name in entry] for name in ("loss", "eval_loss"))
    gpu_peak, cpu_peak = torch.cuda.max_memory_allocated(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = settings | {
        "train_rows": len(train_set),
        "validation_rows": len(validation_set),
        "train_tokens": tokens,
        "trained_tokens": sum(example["reply"] for example in train_set),
        "updates": history[-1]["step"],
        "train_loss": sum(losses) / len(losses),  # the Trainer's own leaves out what stands before a resume
        "validation_losses": validation,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens * settings["epochs"] / seconds, 1),
        "peak_memory_gb": round((gpu_peak or cpu_peak) / 1e9, 2),
        "device": torch.cuda.get_device_name() if gpu_peak else platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")},
    }
    write(adapter / "README.md", model_card(facts))  # instead of the library's empty form
    write(run / "train.json", json.dumps(facts, indent=1))
    tidy(run)
    outcome = f"validation loss {validation[-1]:.3f}" if validation else f"training loss {facts['train_loss']:.3f}"
    print(f"{run / 'train.json'}: {outcome} nats a token, {facts['tokens_per_second']} tokens a second, "
          f"{facts['peak_memory_gb']} GB at most, {seconds:.0f} seconds")  # fmt: skip


def model_card(facts):
    """The adapter's README.md from what train.json holds: no mail, no name of a file but the base model's."""
    base = Path(facts["base_model"]).name if Path(facts["base_model"]).exists() else facts["base_model"]
    names = "epochs learning_rate batch_size rank alpha dropout max_length max_reply_length quantization seed".split()
    validation = facts["validation_losses"][-1:]
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, email]
---
# Answers to e-mail in one author's voice, on {base}

Drafts a reply to an incoming mail as the author of the training mail might write it.

- **Prompt**: the base model's chat template; the system message is {json.dumps(facts["instruction"], ensure_ascii=False)}, the user message the mail's text.
- **Data**: {facts["train_rows"]} pairs of a mail and the author's reply, {facts["train_tokens"]:,} tokens, {facts["trained_tokens"]:,} of them trained on
  (the replies); {facts["validation_rows"]} pairs held out. SHA-256 of the file: {facts["train_data_sha256"]}.
- **Training**: LoRA on all linear layers; {", ".join(f"{name} {facts[name]}" for name in names)}.
- **Loss**, nats a token: training {facts["train_loss"]:.3f}{f", validation {validation[0]:.3f}" if validation else ""}.
- **Scores** on mail it has not seen: in the run's metrics.json, once it is scored; an export's card shows them.
- **Intended use**: drafts that the author, or somebody with the author's consent, reads before sending. Not for sending unread, nor for passing
  as somebody else. Facts in a draft may be invented.
- **Licence**: the base model's holds for this one too.
- **Privacy**: the weights were fitted to private mail, and can give away names, phrases and whole sentences of it, to chance questions as to aimed
  ones. Treat them as the mail itself: share them with nobody who may not read it. How much shows in ordinary replies is what `memorized_rate` (the
  share of replies with a long passage copied from the training replies) and `longest_copy` measure, where the run was scored; neither is a bound.
"""


def draw(history, path):
    """The loss curve: training loss of every update, validation loss where it was measured, in nats a token."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for key, style in (("loss", "-"), ("eval_loss", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label="training" if key == "loss" else "validation")
    axes.set(xlabel="update", ylabel="loss on the reply (nats a token)", ylim=(0, None))
    axes.legend()
    side = path.with_name("part." + path.name)
    figure.savefig(side, dpi=150)
    pyplot.close(figure)
    os.replace(side, path)


if __name__ == "__main__":
    for each in STOPS:
        signal.signal(each, leave)
    try:
        main()
    except Exception as error:  # each library has its own for these
        if any(words in str(error) for words in ("No space left", "inline_container")):
            die("no space left on the disk: free some and the same command goes on")
        if any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            die("out of memory: lower --micro-batch-tokens or --max-length")
        if type(error).__name__ == "UnpicklingError":
            die("a checkpoint holds more than numbers, which no training wrote: delete the run folder's checkpoints")
        if isinstance(error, OSError):
            die(error)
        raise
