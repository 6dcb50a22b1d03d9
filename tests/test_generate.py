"""generate.py for one mail, in a chat and as a file for other programs: replies as those of the batch, and nothing cut that must stay."""

import io
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, row, some_rows, write_jsonl

import generate
import train

MAIL = "Is the kiln cold again? " * 3
FAST = "--quantization none --epochs 8 --batch-size 4 --rank 16 --learning-rate 2e-2 --max-length 160 --max-reply-length 40".split()


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The folder of a finished training of the tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_jsonl(folder / "train.jsonl", some_rows(12))
    train.main(["--base-model", str(tiny), "--train-data", str(data), "--output-dir", str(folder / "run"), *FAST])
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
    for mail, reply in zip(mails, replies(run, tmp_path, mails), strict=True):
        assert one(monkeypatch, capsys, mail, "--run", str(run), "--mail", "-").out == reply + "\n"


def test_words_are_shown_as_they_come(run, tokenizer, monkeypatch):
    class Pieces(io.StringIO):
        flushed = set()

        def flush(self):
            self.flushed.add(self.getvalue())

    _, model = generate.load(json.loads((run / "train.json").read_text()), run)
    monkeypatch.setattr("sys.stdout", Pieces())
    reply = generate.draft(tokenizer, model, generate.encode(tokenizer, some_rows(6)[5], 100), 60)
    assert sys.stdout.getvalue() == reply + "\n"
    assert len(Pieces.flushed) > 3 and all(reply.startswith(piece) for piece in Pieces.flushed)


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


def test_a_mail_with_no_reference_is_read_once(tiny, tokenizer):
    from transformers import AutoModelForCausalLM

    model, passes = AutoModelForCausalLM.from_pretrained(tiny).eval(), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    rows = some_rows(4)
    for each, costs in ((rows, 2), ([{"id": "1", "prompt": rows[0]["prompt"]}], 1)):
        examples = [generate.encode(tokenizer, one, 120) for one in each]
        passes.clear()
        generate.answer(tokenizer, model, examples, 1, 4)
        assert len(passes) == costs
