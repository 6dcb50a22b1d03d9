"""The architectures of chat models are trained, asked, scored and exported as docs/models.md says.

`PYTHONPATH=. python tests/test_families.py [TYPE ...]` prints the table of that page.
"""

import contextlib
import functools
import inspect
import io
import json
import re
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, WORDS, plain_answers, row, tiny_tokenizer, write_jsonl

NEW_TOKENS = 40  # more than two of generate.py's chunks
SMALL = "llama gemma2 mistral gpt_neox falcon lfm2 falcon_h1 mixtral zamba2".split()
FOUR_BIT = {"llama", "gemma2", "gpt_neox", "mixtral", "qwen3"}
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
FAMILIES = {
    line.split()[1]: line for line in re.findall(r"^\| (?!type )[a-z].*", PAGE, re.MULTILINE)
}

# The sizes of a tiny model, each with the names that configs have for it. A window is shorter than
# any prompt here.
SIZES = """
0 num_kv_shared_layers num_mtp_layers
1 n_shared_experts num_shared_experts n_group topk_group first_k_dense_replace mamba_n_groups
1 mamba_ngroups n_groups num_mem_blocks
2 num_hidden_layers n_layers num_layers num_key_value_heads num_experts_per_tok moe_k moe_topk
2 top_k_experts linear_num_key_heads swa_num_key_value_heads n_mamba_heads mamba_expand expand
2 index_n_heads altup_num_inputs zero_expert_num
4 num_attention_heads n_heads linear_num_value_heads linear_num_heads swa_num_attention_heads
4 num_experts num_local_experts n_routed_experts moe_num_experts mamba_dt_rank time_step_rank
8 mamba_n_heads mamba_num_heads chunk_size mamba_chunk_size laurel_rank adapter_rank
8 hidden_size_per_layer_input
16 head_dim v_head_dim kv_channels swa_head_dim linear_key_head_dim linear_value_head_dim
16 linear_head_dim mamba_d_head mamba_d_state mamba_head_dim ssm_state_size state_size
16 index_head_dim q_lora_rank kv_lora_rank qk_nope_head_dim sliding_window attention_window_size
16 attention_chunk_size
32 moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size
32 moe_shared_expert_intermediate_size expert_ffn_hidden_size
64 hidden_size d_model lru_width intermediate_size_mlp prefix_dense_intermediate_size
128 intermediate_size ffn_hidden_size mamba_d_ssm
1024 max_position_embeddings max_seq_len index_topk
"""
DROPOUTS = """attention_dropout hidden_dropout resid_pdrop embd_pdrop residual_dropout
router_jitter_noise input_jitter_noise"""
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONV = {"layer_types": ["conv", "full_attention"]}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
SPECIAL = {
    "cwm": {"bos_token_id": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3": {"vision_config": VISION | {"num_attention_heads": 2}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": CONV,
    "lfm2_moe": CONV | {"num_dense_layers": 1},
    "lfm3": CONV,
    "qwen4_exp_text": LINEAR
    | {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    | {"indexer_budget": 64, "indexer_compress_ratio": 4},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
    },
    **dict.fromkeys(("bailing_hybrid", "kimi_linear", "qwen3_next"), LINEAR),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), LINEAR),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in SMALL else pytest.mark.slow) for k in FAMILIES]
)
def test_family(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("generate.CHUNK", 4)  # so that some rows leave a batch before others
    assert sweep(kind, tmp_path) == FAMILIES[kind]


@pytest.mark.parametrize(
    "kind, leaves", [("llama", True), ("gemma2", True), ("lfm2", False), ("falcon_h1", False)]
)
def test_a_row_that_has_ended_leaves_no_batch_of_recurrent_states(kind, leaves, tmp_path):
    import generate

    make_model(kind, tmp_path)
    assert (generate.new_cache(load(tmp_path)) is not None) == leaves


def test_the_table_names_families_of_the_library():
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    assert len(FAMILIES) >= 76 and FAMILIES.keys() <= known


def sweep(kind, folder):
    """The row of the table for an architecture: what train.py and generate.py do with it."""
    import generate
    import train

    base, run_folder, exported = folder / "base", folder / "run", folder / "export"
    adapter, words = run_folder / "adapter", WORDS * 5
    rows = [
        row(i, " ".join(words[i : i + 2 + 9 * (i % 4)]), " ".join(words[i : i + 3 + i % 5]))
        for i in range(7)
    ]
    known, asked = rows[:4], write_jsonl(folder / "test.jsonl", rows)
    name, rounded = make_model(kind, base), kind in FOUR_BIT
    refusal = call(
        train,
        *("--base-model", base, "--train-data", write_jsonl(folder / "train.jsonl", known)),
        *("--output-dir", run_folder, "--batch-size", 4, "--micro-batch-size", 1 + len(kind) % 2),
        *("--max-length", 256, "--max-reply-length", 64, "--validation-fraction", 0),
        *("--dtype", "float32"),
        *("--quantization", "4bit" if rounded else "none", "--learning-rate", 0.02, "--epochs", 1),
    )
    if refusal:
        assert not (run_folder / "log").exists(), "refused after training"
        reason = refusal.partition(" error: ")[2].replace(f"{base} ", "").replace("|", "/")
        return f"| {kind} | {name} | no | | | {reason} |"
    loss = json.loads((run_folder / "train.json").read_bytes())["train_loss"]
    answer = functools.partial(plain_answers, new_tokens=NEW_TOKENS)
    untrained = answer(load(base, rounded=rounded), adapter, known)
    names = ("reference_nll", "reference_tokens")
    nats, tokens = (sum(answer[name] for answer in untrained) for name in names)
    assert loss == pytest.approx(nats / tokens, rel=1e-3)  # of one update, before it

    refusal = call(generate, "--run", run_folder, "--data", asked, "--max-new-tokens", NEW_TOKENS)
    assert not refusal, "refused after training: " + refusal
    lines = (run_folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers = answer(load(base, adapter, rounded), adapter, rows)
    both = zip(answers, untrained, strict=False)
    assert all(one["reference_nll"] != other["reference_nll"] for one, other in both)
    wrong = differences(answers, [json.loads(line) for line in lines])

    refusal = call(generate, "--run", run_folder, "--export", exported)
    if not refusal:
        if rounded:  # what is exported is not
            answers = answer(load(base, adapter), adapter, rows)
        others = differences(answers, answer(load(exported), exported, rows))
        wrong += [f"exported {other}" for other in others]
    cells = ("yes", f"no: {wrong}" if wrong else "yes", "no" if refusal else "yes")
    return f"| {kind} | {name} | {' | '.join(cells)} | {refusal.partition(' error: ')[2]} |"


def make_model(kind, folder):
    """A base model with random weights, large enough that its replies to two mails differ."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = make_config(kind)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and 0 < weight.std() < 0.08 and "A_log" not in name:
            torch.nn.init.normal_(weight, std=0.1)
    stops = [2, *range(20, len(tokenizer()), 12)]  # so that most replies end by themselves
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return type(model).__name__


def make_config(kind):
    """A tiny config of the architecture, or of its text part where it is composite."""
    from transformers import CONFIG_MAPPING

    size = len(tokenizer())
    values = {"vocab_size": size, "vocab_size_per_layer_input": size, "initializer_range": 0.1}
    values |= {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    values |= dict.fromkeys(DROPOUTS.split(), 0.0)
    for number, *names in map(str.split, SIZES.strip().splitlines()):
        values |= dict.fromkeys(names, int(number))

    def choose(config):
        names = inspect.signature(config.__init__).parameters.keys() - config.attribute_map.keys()
        chosen = {name: value for name, value in values.items() if name in names}
        if "qk_rope_head_dim" in names:  # of latent attention: head_dim is that of this part
            chosen |= {"qk_rope_head_dim": 8, "head_dim": 8, "num_key_value_heads": 4}
        return chosen | SPECIAL.get(config.model_type, {})

    config = CONFIG_MAPPING[kind]
    chosen = choose(config)
    text = config.sub_configs.get("text_config")
    if text and "vocab_size" not in chosen:
        chosen["text_config"] = choose(text)
    return config(**chosen)


@functools.cache
def tokenizer():
    """Of printable letters and some words: a text of its ids shows each of them."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = [letter for letter in ByteLevel.alphabet() if letter < "\x7f"] + ["Ġ", "Ċ"]
    return tiny_tokenizer(200, letters)  # also blank and line break


def call(script, *arguments):
    """What a script says on standard error when it refuses; "" when all is done."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            script.main([str(argument) for argument in arguments])
        except SystemExit as end:
            assert end.code == 2 and errors.getvalue().count("\n") == 1, errors.getvalue()
            return errors.getvalue().strip()
    return ""


def load(folder, adapter=None, rounded=False):
    """A model as any program loads it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    double = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    nf4 = BitsAndBytesConfig(load_in_4bit=True, **double) if rounded else None
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=nf4
    )
    model = model.dequantize() if rounded else model  # a CPU's 4-bit product rounds to bfloat16
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def differences(answers, others):
    """Where the others are not the answers; but a tie, by rounding, is none."""
    wrong = []
    for n, (answer, other) in enumerate(zip(answers, others, strict=True)):
        if any(answer[name] != other[name] for name in ("prediction", "finish_reason")):
            texts = enumerate(answer["texts"])
            place = max(n for n, text in texts if other["prediction"].startswith(text))
            gap = answer["gaps"][min(place, len(answer["gaps"]) - 1)]
            if gap > 1e-4:
                wrong.append(f"reply {n} at token {place}, won by {gap:.1e}")
        if other["reference_nll"] != pytest.approx(answer["reference_nll"], rel=1e-3):
            wrong.append(f"likelihood {n}")
    return wrong


if __name__ == "__main__":
    for kind in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            print(sweep(kind, Path(folder)), flush=True)
