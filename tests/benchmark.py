"""How fast and how large: figures measured side by side, printed and kept in runs/benchmark.json.

  make bench          # 13 minutes on two slow CPU cores; or BENCH=train, BENCH=generate, ...

All compute in bfloat16 where this CPU does so natively, as --dtype auto has it, else in float32.

train     tokens a second of train.py with the embedded model, against this machine's matrix rate
          in that type (train_vs_limit, a share), a plain QLoRA recipe (train_vs_plain) and TRL's
          SFTTrainer at its best settings (train_vs_trl)
generate  seconds a mail, where all write as many tokens as generate.py does: of a plain recipe
          over generate.py's (generate_vs_plain, replies and likelihoods); and of llama.cpp in
          float32, bfloat16 and Q8_0, replies only, over generate.py's with the likelihoods
          (generate_vs_llamacpp and so on); and the tokens a second of one reply alone
          (reply_tokens_per_second, and llama.cpp's)
extract   messages a second out of a generated .tar.gz of 40,000, with the seconds a message
          against an archive half as large
evaluate  seconds that evaluate.py takes for 215 replies with all intervals, format for 863 rows,
          and --help of the slowest script

Both peaks are the largest memory of the whole process. The mail is the sample's, cut and joined to
the lengths of Enron's.
"""

import argparse
import contextlib
import csv
import functools
import io
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "benchmark"
RUN, TRAIN, TEST = FOLDER / "run", FOLDER / "train.jsonl", FOLDER / "test.jsonl"
EMBEDDED = ROOT / "models" / "SmolLM2-135M-Instruct"
AUTHOR = "maud.okafor@ternandtallow.example"
SAMPLE = [
    ROOT / "data" / "sample" / f"{name}_train_43.csv"
    for name in ("maud_okafor", "bernard_pell", "tomek_wilk", "ines_caldeira")
]
LEARNED, PLAIN_LEARNED, TRL_LEARNED = 32, 4, 16  # mails; the plain recipes take long
ANSWERED, PLAIN_ANSWERED = 64, 5
ON_CPU = "--quantization none --micro-batch-size 2".split()  # as in the Makefile
sys.modules["kernels"] = None  # as in the scripts
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
sys.path[:0] = [str(ROOT), str(ROOT / ".venv" / "bench")]  # the scripts; TRL and llama.cpp


def main(argv=None):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.usage = argparse.SUPPRESS  # a wrong name ends in one line
    parts = {"train": bench_train, "generate": bench_generate}
    parts |= {"extract": bench_extract, "evaluate": bench_evaluate}
    parser.add_argument("part", nargs="?", choices=parts, help="(default all)")
    wanted = parser.parse_args(argv).part
    if wanted in (None, "train", "generate"):
        install_rivals()
    file = ROOT / "runs" / "benchmark.json"
    figures = (json.loads(file.read_text()) if file.exists() else {}) | processor()
    print(figures["cpu"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part in [wanted] if wanted else parts:
        found = parts[part]()
        figures |= found
        for name, value in found.items():
            print(f"{name:32}{value:12,.2f}", flush=True)
    file.write_text(json.dumps(figures, indent=1) + "\n")
    print(file.relative_to(ROOT))


def processor():
    """This machine's CPU by its name, and what torch says that it can do."""
    import torch

    names = re.findall(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    able = sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True)
    return {
        "cpu": f"{len(names)} cores of {names[0] if names else 'unknown'}",
        "capabilities": able,
    }


def native():
    """The type of number that train.py and generate.py take by themselves here."""
    import torch

    import train

    return getattr(torch, train.native_type())


def install_rivals():
    """What the figures are held against, apart from the scripts' own; llama.cpp is compiled."""
    folder = ROOT / ".venv" / "bench"
    if not folder.exists():
        packages = ["trl==1.16.0", "llama-cpp-python==0.3.36", "diskcache==5.6.3"]
        side = folder.with_name("bench.part")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", side]
        subprocess.run([*pip, *packages], check=True)
        side.rename(folder)


def script(name, *arguments, env=None):
    """Seconds that one of the scripts takes."""
    command, start = [sys.executable, ROOT / name, *map(str, arguments)], time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    return time.perf_counter() - start


def script_with_peak(*command):
    return script(*command), peak_gb(resource.RUSAGE_CHILDREN)


def alone(function, *arguments):
    """(what the function returns, peak memory in GB) of a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(quiet, function, *arguments).result(), pool.submit(peak_gb).result()


def quiet(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def peak_gb(who=resource.RUSAGE_SELF):
    return resource.getrusage(who).ru_maxrss * 1024 / 1e9


def of_model(gb):
    """A memory in sizes of the embedded model."""
    return gb * 1e9 / (EMBEDDED / "model.safetensors").stat().st_size


def sample_rows():
    with SAMPLE[0].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def sample_words():
    """The words of the sample's mails and of its replies, without quoted mail, which would be cut
    again."""
    script("prepare_data.py", "format", SAMPLE[0], own := FOLDER / "sample.jsonl")
    pairs = [json.loads(line) for line in own.read_text(encoding="utf-8").splitlines()]
    mails = [pair["prompt"][-1]["content"] for pair in pairs]
    replies = [pair["completion"][0]["content"] for pair in pairs]
    return {"mail": " ".join(mails).split(), "response": " ".join(replies).split()}


def write_mail(path, count):
    """The JSONL of `count` replies of the sample's words, as long as Jeff Dasovich's: log-normal,
    their medians and 90th percentiles in words 190 and 525 for mail, 16 and 62 for replies.
    Returns the seconds that format takes."""
    draw, table = random.Random(count), path.with_suffix(".csv")
    rows, words = sample_rows(), sample_words()

    def text(name, median, tenth):
        start = draw.randrange(len(words[name]))
        length = max(1, round(median * (tenth / median) ** (draw.gauss() / 1.2816)))
        endless = itertools.cycle(words[name])
        return " ".join(itertools.islice(endless, start, start + min(length, 1500)))

    with table.open("w", encoding="utf-8", newline="") as file:
        (writer := csv.DictWriter(file, rows[0])).writeheader()
        for i in range(count):
            # No two alike, or format would drop one.
            reply, mail = text("response", 16, 62), f"{text('mail', 190, 525)} {i}"
            body = f"{reply} {mail}"
            new = {"id": i, "mail": mail, "response": reply, "body": body, "length": len(body)}
            writer.writerow(rows[i % len(rows)] | new)
    return script("prepare_data.py", "format", table, path)


# --- train


def bench_train():
    import torch

    shutil.rmtree(RUN, ignore_errors=True)
    write_mail(TRAIN, LEARNED)
    flags = ["--base-model", EMBEDDED, "--train-data", TRAIN, "--output-dir", RUN]
    flags = [str(flag) for flag in [*flags, "--validation-fraction", 0, "--epochs", 1, *ON_CPU]]
    rates = matrix_rates(dtype=native())
    script("train.py", *flags)
    rates += matrix_rates(dtype=native())
    facts = json.loads((RUN / "train.json").read_text())
    (work, plain), plain_gb = alone(plain_training, flags)
    kinds = {native() is torch.bfloat16, False}  # with autocast or without, whichever is faster
    trl, trl_gb = max(alone(functools.partial(trl_training, bf16=kind), flags) for kind in kinds)
    ours, rate = facts["tokens_per_second"], len(rates) / sum(1 / each for each in rates)
    print(
        f"train.py {ours} tokens a second, {facts['peak_memory_gb']} GB; plain recipe {plain:.1f}, "
        f"{plain_gb:.2f} GB; TRL {trl:.1f}, {trl_gb:.2f} GB; {facts['dtype']} "
        f"matrices {rate / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} cores, "
        f"{max(rates) / 1e9:.0f} at best"
    )
    return {
        "train_vs_limit": ours * work / rate,
        "train_vs_plain": ours / plain,
        "train_vs_trl": ours / trl,
        "train_peak_gb": facts["peak_memory_gb"],
        "train_peak_vs_model": of_model(facts["peak_memory_gb"]),
    }


def matrix_rates(seconds=5, size=2048, **kind):
    """Floating-point operations a second of this machine's matrix products, each that it computes
    in so many seconds; float32 on the CPU unless `kind` has another dtype and device."""
    import torch

    a, b = torch.randn(2, size, size, **kind)
    wait = torch.cuda.synchronize if a.is_cuda else lambda: None
    times = []
    while len(times) < 2 or times[-1] - times[0] < seconds:
        a @ b
        wait()
        times.append(time.perf_counter())
    return [2 * size**3 / (after - before) for before, after in itertools.pairwise(times)]


def prepare(flags):
    """(settings, tokenizer, examples) as train.py has them."""
    import train

    args = train.parse_args(flags)
    rows = train.read_jsonl(args.train_data)
    settings = train.fill_defaults(args, rows)
    tokenizer, _ = train.load_tokenizer(settings["base_model"], settings)
    return settings, tokenizer, [train.make_example(tokenizer, row, settings) for row in rows]


def nf4_model():
    """The embedded model in NF4 layers, as the usual recipe has it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=native(), **kind)
    how = {"dtype": native(), "quantization_config": nf4}
    return AutoModelForCausalLM.from_pretrained(EMBEDDED, **how)


def plain_training(flags):
    """(operations a real token, tokens a second) of the usual recipe: NF4 layers, dropout, padding
    to the maximum length, all logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer

    settings, tokenizer, examples = prepare(flags)
    sizes = {"r": settings["rank"], "lora_alpha": settings["alpha"], "lora_dropout": 0.05}
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **sizes)
    model = get_peft_model(nf4_model(), lora)
    work = operations(model, examples)
    rows, width = examples[:PLAIN_LEARNED], settings["max_length"]

    def pad(example):
        ids, length = example["input_ids"], example["length"]
        prompt, rest = length - example["reply"], width - length
        labels = [-100] * prompt + ids[prompt:] + [-100] * rest
        mask = [1] * length + [0] * rest
        return {"input_ids": ids + [0] * rest, "attention_mask": mask, "labels": labels}

    padded = [pad(example) for example in rows]
    trainer = Trainer(model, arguments(settings), train_dataset=padded)
    # Each row takes as long as the others.
    mean = sum(example["length"] for example in examples) / len(examples)
    return work, len(rows) * mean / trainer.train().metrics["train_runtime"]


def operations(model, examples):
    """Floating-point operations a token of training: forward and backward through the linear
    layers, for the adapter's gradients once more, and the vocabulary where a reply is."""
    config = model.config
    adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    key_value = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    layer = 2 * config.hidden_size + 2 * key_value + 3 * config.intermediate_size
    frozen = config.num_hidden_layers * config.hidden_size * layer
    replies, lengths = (sum(example[name] for example in examples) for name in ("reply", "length"))
    projected = replies / lengths * config.hidden_size * config.vocab_size
    return 4 * frozen + 6 * adapter + 4 * projected


def trl_training(flags, count=TRL_LEARNED, **how):
    """Tokens a second of TRL on train.py's model, adapter and ids.

    By default with what makes it fast on a CPU: no checkpointing, a batch's rows one after the
    other, without padding. Together, grouped by length, they took a quarter longer on two cores
    and two and a half times the memory.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    import train

    settings, tokenizer, examples = prepare(flags)
    examples = examples[:count]
    masks = [
        [0] * (example["length"] - example["reply"]) + [1] * example["reply"]
        for example in examples
    ]
    columns = {"input_ids": [example["input_ids"] for example in examples]}
    rows = Dataset.from_dict(columns | {"completion_mask": masks})
    model = train.load_model(settings)
    steps = settings["batch_size"]
    fast = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
    fast |= {"max_length": None, "completion_only_loss": True}
    fast |= {"gradient_checkpointing": False, "bf16": False}
    config = arguments(settings, SFTConfig, **fast | how)
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    return sum(example["length"] for example in examples) / trainer.train().metrics["train_runtime"]


def arguments(settings, kind=None, **more):
    from transformers import TrainingArguments

    common = {"num_train_epochs": 1, "learning_rate": settings["learning_rate"]}
    common |= {"per_device_train_batch_size": settings["batch_size"], "logging_steps": 1000}
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    return (kind or TrainingArguments)(tempfile.mkdtemp(), **common | quiet | more)


# --- generate


def bench_generate():
    if not (RUN / "train.json").exists():
        bench_train()
    write_mail(TEST, ANSWERED)
    command = ["make", "--silent", "runs/benchmark/run/model.gguf"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (ours, written), gb = alone(our_answers)
    one = alone(our_reply)[0]
    plain, plain_gb = alone(plain_answers, written)
    print(
        f"generate.py {ours:.2f} seconds a mail, {gb:.2f} GB, {one:.0f} tokens a second of one "
        f"reply; plain recipe {plain:.2f}, {plain_gb:.2f} GB; "
        f"{sum(written) / len(written):.0f} tokens a reply"
    )
    figures = {
        "generate_vs_plain": plain / ours,
        "generate_peak_gb": gb,
        "generate_peak_vs_model": of_model(gb),
        "reply_tokens_per_second": one,
    }
    for kind in ("", "_bf16", "_q8_0"):
        try:
            theirs, alike = alone(llamacpp_answers, written, kind)[0]
        except BrokenProcessPool:  # its layout of the weights takes what this machine has not
            theirs, alike = alone(llamacpp_answers, written, kind, False)[0]
        print(f"llama.cpp{kind or '_f32'} {theirs:.2f} seconds a mail")
        figures[f"generate_vs_llamacpp{kind}"] = theirs / ours
        figures[f"llamacpp{kind}_tokens_per_second"] = alike
    return figures


def questions(run=RUN, test=TEST):
    """(settings, the test mails as generate.py encodes them)."""
    from transformers import AutoTokenizer

    import generate

    settings = generate.read_settings(generate.parse_args(["--run", str(run), "--data", str(test)]))
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    rows = generate.read_jsonl(test)
    return settings, [generate.encode(tokenizer, row, settings) for row in rows]


def our_answers(run=RUN, test=TEST, **changes):
    """(seconds a mail, tokens of each reply) of generate.py's answers with the likelihoods of the
    real replies, once the model is loaded."""
    import torch

    import generate

    settings, examples = questions(run, test)
    tokenizer, model = generate.load_run(settings["base_model"], settings | changes, run)
    sizes = (16 if torch.cuda.is_available() else 64, 1)  # as in the Makefile
    start, answers = time.perf_counter(), {}
    generate.answer_all(tokenizer, model, examples, sizes, io.BytesIO(), answers)
    seconds = (time.perf_counter() - start) / len(examples)
    texts = [answers[place]["prediction"] for place in range(len(examples))]
    return seconds, [len(generate.tokenize(tokenizer, text)) + 1 for text in texts]


def our_reply(tokens=64):
    """Tokens a second of one reply, once its first is written."""
    import torch

    import generate

    settings, examples = questions()
    _, model = generate.load_run(settings["base_model"], settings, RUN)
    ids = torch.tensor([examples[0]["prompt"]])

    def seconds(length):
        start = time.perf_counter()
        how = {"min_new_tokens": length, "max_new_tokens": length}
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **how)
        return time.perf_counter() - start

    seconds(1)
    return tokens / (seconds(tokens + 1) - seconds(1))


def plain_answers(written):
    """Seconds a mail of the usual recipe: a mail at a time, NF4 layers with a loose adapter, the
    likelihood by a second reading; of a few mails, from the shortest reply to the longest."""
    import torch
    from peft import PeftModel

    _, examples = questions()
    model = PeftModel.from_pretrained(nf4_model(), RUN / "adapter").eval()
    order = sorted(range(len(examples)), key=written.__getitem__)
    some = [order[i * (len(order) - 1) // (PLAIN_ANSWERED - 1)] for i in range(PLAIN_ANSWERED)]
    with torch.inference_mode():
        # Which may change the layout of the weights.
        model(input_ids=torch.tensor([examples[0]["prompt"]]))
        start = time.perf_counter()
        for example, length in ((examples[place], written[place]) for place in some):
            prompt = torch.tensor([example["prompt"]])
            reply = torch.tensor([example["prompt"] + example["reply"]])
            how = {"min_new_tokens": length, "max_new_tokens": length, "do_sample": False}
            how |= {"eos_token_id": example["reply"][-1], "pad_token_id": 0}
            model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
            labels = reply.clone()
            labels[:, : prompt.shape[1]] = -100
            model(input_ids=reply, labels=labels)
    return (time.perf_counter() - start) / len(some)


def llamacpp_answers(written, kind, layout=True, parallel=16, tokens=64):
    """(seconds a mail of llama.cpp's greedy replies, up to `parallel` mails at a time; tokens a
    second of one reply alone, once its first is written), its weights of a kind, by default in
    the layout that it thinks best here."""
    import llama_cpp as cpp

    whole, file = RUN / "model.gguf", RUN / f"model{kind}.other.gguf"
    cpp.llama_log_set(silent := cpp.llama_log_callback(lambda *_: None), None)
    how = cpp.llama_model_quantize_default_params()
    kinds = {"_bf16": cpp.LLAMA_FTYPE_MOSTLY_BF16, "_q8_0": cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
    how.ftype = kinds.get(kind, cpp.LLAMA_FTYPE_ALL_F32)
    if not file.exists() or file.stat().st_mtime < whole.stat().st_mtime:
        failed = cpp.llama_model_quantize(str(whole).encode(), str(file).encode(), how)
        assert not failed, "llama.cpp cannot write this kind"
    settings, examples = questions()
    options = cpp.llama_model_default_params()
    options.use_extra_bufts = layout
    model = cpp.llama_model_load_from_file(str(file).encode(), options)
    prompts = [example["prompt"] for example in examples]
    room = 256 * -(-settings["max_length"] // 256)
    llamacpp_seconds(model, prompts[:1], [1], 1, room)
    one = [llamacpp_seconds(model, prompts[:1], [n], 1, room) for n in (tokens + 1, 1)]
    seconds = llamacpp_seconds(model, prompts, written, parallel, room)
    assert silent
    return seconds / len(prompts), tokens / (one[0] - one[1])


def llamacpp_seconds(model, prompts, lengths, parallel, room):
    """Seconds for replies of these lengths in tokens: who ends makes room for the next."""
    import llama_cpp as cpp
    import numpy

    context = cpp.llama_context_default_params()
    context.n_seq_max, context.n_batch = parallel, 2048
    context.n_ctx = parallel * room  # each mail has its share of the cache
    context.n_threads = context.n_threads_batch = os.cpu_count()
    context = cpp.llama_init_from_model(model, context)
    words = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    memory = cpp.llama_get_memory(context)
    batch = cpp.llama_batch_init(2048, 0, 1)

    start = time.perf_counter()
    waiting, going, free = list(zip(prompts, lengths, strict=True)), {}, set(range(parallel))
    while waiting or going:
        # (sequence, position, token, whether its logits are wanted)
        new = [(sequence, *place, True) for sequence, (*place, _) in going.items()]
        while waiting and free and len(new) + len(waiting[-1][0]) <= 2048:
            sequence, (prompt, length) = free.pop(), waiting.pop()
            last = len(prompt) - 1
            new += [(sequence, n, token, n == last) for n, token in enumerate(prompt)]
            going[sequence] = (last, None, length)
        for i, (sequence, position, token, wanted) in enumerate(new):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(new)
        assert not cpp.llama_decode(context, batch)
        for i, (sequence, position, _, wanted) in enumerate(new):
            if wanted:
                logits = cpp.llama_get_logits_ith(context, i)
                token = int(numpy.ctypeslib.as_array(logits, (words,)).argmax())
                going[sequence] = (position + 1, token, going[sequence][2] - 1)
                if not going[sequence][2]:
                    del going[sequence]
                    free.add(sequence)
                    cpp.llama_memory_seq_rm(memory, sequence, -1, -1)
    seconds = time.perf_counter() - start
    cpp.llama_free(context)
    return seconds


# --- extract and evaluate


def bench_extract(sizes=(20_000, 40_000)):
    """extract on archives of two sizes: messages a second and peak memory at the larger, seconds a
    message larger / smaller."""
    seconds = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "mail.tar.gz"
            write_archive(archive, size)
            command = ["mail.py", "extract", archive, Path(folder) / "replies.csv"]
            command += ["--author", AUTHOR]
            (seconds[size], peak), _ = alone(script_with_peak, *command)
    small, large = sizes
    return {
        "extract_messages_per_second": large / seconds[large],
        "extract_linearity": seconds[large] / large / (seconds[small] / small),
        "extract_peak_gb": peak,
    }


def write_archive(path, size):
    """A .tar.gz of `size` messages made of the sample's mails; every fourth is the author's and
    quotes what it answers."""
    rows = sample_rows()
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for i in range(size):
            row, own = rows[i % len(rows)], i % 4 == 3
            header = f"From: Joss Whitfield\nSent: Monday\nTo: Maud\nSubject: {i}"
            quoted = f"\n\n-----Original Message-----\n{header}\n\n{row['mail']}"
            text = row["response"] + str(i) + quoted if own else row["mail"] * 8
            message = (
                f"Message-ID: <{i}@tern.example>\nDate: Mon, {1 + i % 28} Apr 2019 10:00:00 "
                f"+0100\nFrom: {AUTHOR if own else 'joss@tern.example'}\n"
                f"To: someone@tern.example\nSubject: RE: lamp {i}\n"
                + (f"In-Reply-To: <{i - 1}@tern.example>\n" if i % 8 == 7 else "")
                + f"Content-Type: text/plain; charset=utf-8\n\n{text}\n"
            ).encode()
            entry = tarfile.TarInfo(f"maildir/okafor-m/{'sent' if own else 'inbox'}/{i}.")
            entry.size = len(message)
            archive.addfile(entry, io.BytesIO(message))


def bench_evaluate():
    """evaluate.py on 215 replies and the four authors of the sample; format on 863 rows; the
    slowest --help."""
    learned, answered, run = FOLDER / "863.jsonl", FOLDER / "215.jsonl", FOLDER / "nearest"
    format_seconds = write_mail(learned, 863)
    write_mail(answered, 215)
    files = ["--train-data", learned, "--data", answered, "--output", run / "predictions.jsonl"]
    script("generate.py", "--baseline", "nearest", *files)
    authors = [FOLDER / f"{path.stem}.jsonl" for path in SAMPLE]
    for path, author in zip(SAMPLE, authors, strict=True):
        script("prepare_data.py", "format", path, author)
    scripts = "prepare_data.py train.py generate.py evaluate.py mail.py".split()
    return {
        "evaluate_seconds": script("evaluate.py", run, "--style-data", *authors),
        "format_seconds": format_seconds,
        "start_seconds": max(script(name, "--help") for name in scripts),
    }


if __name__ == "__main__":
    main()
