"""What several tests share: a chat model of two random layers with its own tokenizer, rows to train
it on, a pipeline that nothing disturbed, a clone for make."""

import functools
import json
import os
import pwd
import random
import re
import shutil
from pathlib import Path

import pytest
from pipeline import ROOT, finish, stages

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # no test may ask a hub
for name in [name for name in os.environ if name.startswith("MAKE")]:
    del os.environ[name]  # `make test` must not change what the makes of the tests do
EMBEDDED = ROOT / "models" / "SmolLM2-135M-Instruct"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "the kiln is cold again -- wax, wick and brass by noon? cheers, m. Dear Ms Brandt, 12 lamps!"
).split()
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
INSTRUCTION = "Respond to the given email"
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def tiny_tokenizer(
    size=400, alphabet=None, template=CHATML, control=CONTROL, bos=None, plain=(), folds=False
):
    """A byte-level tokenizer, made in the process; of all bytes.

    The last of the control tokens ends a reply. `plain` ones are not called special; where the
    tokenizer `folds` letters, control tokens are known in any.
    """
    import tokenizers
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast

    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    if folds:
        raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, normalized=folds) for text in control],
        initial_alphabet=alphabet or tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(WORDS, trainer)
    raw.add_tokens([AddedToken(text, normalized=False) for text in plain])
    names = {"tokenizer_object": raw, "eos_token": control[-1], "chat_template": template}
    names |= {"additional_special_tokens": [text for text in control[:-1] if text != bos]}
    return PreTrainedTokenizerFast(**names | ({"bos_token": bos} if bos else {}))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a Llama with two random layers and the tokenizer above."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = TINY | {"vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    config = LlamaConfig(eos_token_id=2, **sizes)
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lively(tiny, tmp_path_factory):
    """The folder of that model with larger weights: other mail, another reply; no two draws are
    the same."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("lively", numbered=False)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    for weight in model.parameters():
        weight.data *= 8 if weight.dim() > 1 else 1
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def write_llama(folder, tokenizer, **sizes):
    """A checkpoint of Llama-2-7b's exact shape, or of the sizes given, and its number of weights.

    Every layer has the same random weights, in a file of its own: it is written in less memory
    than it has weights.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    # All else is 7b's by default.
    sizes = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5} | sizes
    config = LlamaConfig(dtype="float16", architectures=["LlamaForCausalLM"], **sizes)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    torch.manual_seed(0)
    files, drawn = {}, {}
    for name, shape in shapes.items():
        layer, kind = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.*)", name).groups()
        if kind not in drawn:
            weight = torch.empty(shape, dtype=torch.float16)
            drawn[kind] = weight.fill_(1) if "norm" in kind else weight.normal_(0, 0.02)
        files.setdefault(f"layer-{layer or 32}.safetensors", {})[name] = drawn[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for file, weights in files.items():
        save_file(weights, folder / file, {"format": "pt"})
    places = {name: file for file, weights in files.items() for name in weights}
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(shape.numel() for shape in shapes.values())


def row(number, mail="Is the kiln cold?", reply="yes, by noon. cheers, m.", system=INSTRUCTION):
    texts = {"system": system, "user": mail, "assistant": reply}
    *prompt, answer = [{"role": role, "content": text} for role, text in texts.items()]
    return {"id": str(number), "prompt": prompt, "completion": [answer]}


def some_rows(count):
    """Mails and replies of various lengths."""
    return [
        row(i, " ".join((WORDS * 9)[i : 9 + 7 * (i % 5)]), " ".join((WORDS * 9)[i : i + 3 + i % 7]))
        for i in range(count)
    ]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def refused(capsys):
    """refused(call, ...): the line on standard error in which the call ends, with exit status 2."""

    def run(call, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call(*arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2
        return line

    return run


def plain_answers(model, folder, rows, new_tokens=None):
    """What plain transformers answers to each mail by itself, as generate.py names it.

    The tokenizer and what ends a reply are the folder's. Also: "prompt_tokens"; "texts", up to each
    token of the reply; "gaps", by how little the likeliest token won there.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GenerationConfig.from_pretrained(folder)
    config.max_new_tokens = new_tokens or config.max_new_tokens
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    options = {"generation_config": config, "return_dict_in_generate": True, "output_logits": True}
    answers = []
    for turns in rows:
        prompt = tokenizer.apply_chat_template(
            turns["prompt"], add_generation_prompt=True, tokenize=True, return_tensors="pt"
        ).input_ids
        start, nll, tokens = prompt.shape[1], None, None
        with torch.inference_mode():
            output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
            if "completion" in turns:
                text = turns["completion"][0]["content"] + "<|im_end|>"
                reference = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
                logits = model(input_ids=torch.cat([prompt, reference], 1)).logits
                scores, tokens = logits[0, start - 1 : -1], reference.shape[1]
                nll = torch.nn.functional.cross_entropy(scores, reference[0], reduction="sum")
        reply = output.sequences[0, start:].tolist()
        ended = reply[-1] in config.eos_token_id
        texts = [decode(reply[:n]).strip() for n in range(len(reply) + 1 - ended)]
        best, second = torch.stack(output.logits)[:, 0].topk(2).values.T
        answer = {"prediction": texts[-1], "finish_reason": "stop" if ended else "length"}
        answer |= {"reference_nll": nll if nll is None else nll.item(), "reference_tokens": tokens}
        answer |= {"prompt_tokens": start, "texts": texts, "gaps": (best - second).tolist()}
        answers.append(answer)
    return answers


def line(**change):
    """A row of a prompt/completion file, None for a key that is to be left out."""
    each = row(1) | change
    return json.dumps({key: value for key, value in each.items() if value is not None}) + "\n"


def predicted(**change):
    each = {"id": "1", "mail": "m", "reference": "r", "prediction": "p", "finish_reason": "stop"}
    return json.dumps(each | {"reference_nll": 2.0, "reference_tokens": 3} | change) + "\n"


MAIL = """\
From maud@tern.example Mon May  6 12:00:00 2024
From: Maud <maud@tern.example>
To: len@tern.example
Date: 6 May 2024 12:00:00 +0000
Subject: =?utf-8?q?Re:_kiln?=
Message-ID: <2@x>
In-Reply-To: <1@x>
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/html; charset=latin-1
Content-Transfer-Encoding: quoted-printable

<p>yes =E9</p><blockquote>cold?</blockquote>
--b--
"""


def serve_mail(home, maildir):
    """The command that speaks IMAP for a Maildir in the folder `home`: Dovecot's, on its pipes."""
    imap = Path("/usr/lib/dovecot/imap")
    if not imap.exists():
        pytest.skip(f"{imap} is not installed")
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())  # not root
    Path(home, "conf").write_text(
        f"mail_location = maildir:{home}/{maildir}\nlog_path = {home}/log\n"
        f"mail_uid = {owner.pw_uid}\nmail_gid = {owner.pw_gid}\n"
        "first_valid_uid = 1\nfirst_valid_gid = 1\nnamespace inbox {\n inbox = yes\n}\n"
    )
    for path in (home, *Path(home).rglob("*")):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    return f"env -i HOME={home} USER=maud {imap} -c {home}/conf"


LLAMA2_TEMPLATE = (  # the one that comes with meta-llama/Llama-2-7b-chat-hf
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)


def llama2_tokenizer(folder, **how):
    """Llama 2's tokenizer with its template, from the file that LLAMA2_TOKENIZER names."""
    from transformers import LlamaTokenizer

    if not os.environ.get("LLAMA2_TOKENIZER"):
        pytest.skip("LLAMA2_TOKENIZER names no tokenizer.model of Llama 2")
    shutil.copy(os.environ["LLAMA2_TOKENIZER"], Path(folder, "tokenizer.model"))
    return LlamaTokenizer.from_pretrained(folder, chat_template=LLAMA2_TEMPLATE, **how)


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The folder of a fictional author's mail: 60 replies that quote what they answer."""
    folder, draw = tmp_path_factory.mktemp("archive"), random.Random(0)
    for i in range(60):
        mail, reply = (" ".join(draw.choices(WORDS, k=draw.randrange(4, 30))) for _ in range(2))
        (folder / f"{i:02}.eml").write_text(
            f"From: maud@tern.example\nTo: len@tern.example\nDate: {1 + i % 28} May 2024 "
            f"12:00:{i:02} +0000\nSubject: Re: kiln {i}\n"
            f"Message-ID: <{i}@tern.example>\nIn-Reply-To: <x{i}@tern.example>\n\n{reply}\n\n"
            f"On 1 May 2024 at 10:00 Len <len@tern.example> wrote:\n> {mail} {i}\n"
        )
    return folder


@pytest.fixture(scope="session")
def changes(tiny, archive, tmp_path_factory):
    """(folder, changes of files at each stage) of the pipeline, never killed."""
    out = tmp_path_factory.mktemp("undisturbed")
    return out, [finish(command, out) for command in stages(tiny, archive, out)]


@pytest.fixture(scope="session")
def undisturbed(changes):
    """The folder of the pipeline that was never killed."""
    return changes[0]


@pytest.fixture
def prepared(tiny, undisturbed, tmp_path):
    """(folder with the undisturbed JSONL, command of train.py, command of generate.py)."""
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(undisturbed / name, tmp_path / name)
    return tmp_path, *stages(tiny, None, tmp_path)[4:6]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root's rights")


@pytest.fixture
def clone(tmp_path):
    """The Makefile and what it reads, with no environment, model, mail or run."""
    no_jsonl = shutil.ignore_patterns("*.jsonl")
    for fiction in "data/sample", "data/notes":
        shutil.copytree(ROOT / fiction, tmp_path / fiction, ignore=no_jsonl)
    for name in ("Makefile", "requirements.txt", "evaluate.py", "data/SHA256SUMS"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path
