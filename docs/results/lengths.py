"""Are replies short because a short one is the likeliest? On the mail kept for validation.

  PYTHONPATH=. python docs/results/lengths.py

Prints the mean and median of the words of the real replies, of greedy ones and of eight drawn for
each mail; the mean cost of a greedy reply and of a real one in nats; and how many of the real ones
are likelier than the greedy one.
"""

import statistics
from pathlib import Path

import torch

import generate

run = Path("runs/experience1/exp1.J-J")
settings = generate.read_settings(generate.parse_args(["--run", str(run), "--id", "-"]))
tokenizer, model = generate.load_run(settings["base_model"], settings, run)
rows = generate.read_jsonl(Path(settings["train_data"]))[19::20]  # those kept for validation


def nats(prompt, reply):
    ids = torch.tensor([prompt + reply])
    labels = torch.tensor([[-100] * len(prompt) + reply])
    with torch.no_grad():
        return model(input_ids=ids, labels=labels).loss.item() * len(reply)


def show(name, texts):
    lengths = [len(text.split()) for text in texts]
    print(name, statistics.mean(lengths), statistics.median(lengths))


show("real", [row["completion"][0]["content"] for row in rows])
encoded = [generate.encode(tokenizer, row, settings) for row in rows]
torch.manual_seed(42)
costs = []  # of greedy replies and of the real ones
for how in ({}, {"do_sample": True, "top_k": 0, "num_return_sequences": 8}):
    texts = []
    for row in encoded:
        ids = torch.tensor([row["prompt"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :]
        texts += tokenizer.batch_decode(out, skip_special_tokens=True)
        if not how:
            costs.append([nats(row["prompt"], ids) for ids in (out[0].tolist(), row["reply"])])
    show("drawn" if how else "greedy", texts)
print("nats, greedy and real", *map(statistics.mean, zip(*costs, strict=True)))
print("likelier than greedy", sum(real < greedy for greedy, real in costs), len(costs))
