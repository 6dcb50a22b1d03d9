"""What a doubling of the training mails changes, by a least-squares line over the trainings.

  python docs/results/trend.py runs/experience2/exp*

Prints the slope of each primary measure over log2 of the number of training mails, with the 95 %
interval and p of its t test.
"""

import json
import math
import sys
from pathlib import Path

from scipy.stats import linregress, t

doublings, metrics = [], []
for run in map(Path, sys.argv[1:]):
    rows = json.loads((run / "train.json").read_text(encoding="utf-8"))["train_rows"]
    doublings.append(math.log2(rows))
    metrics.append(json.loads((run / "metrics.json").read_text(encoding="utf-8"))["metrics"])
for measure in ("perplexity_char", "style"):
    fit = linregress(doublings, [of_run[measure]["value"] for of_run in metrics])
    half = t.ppf(0.975, len(doublings) - 2) * fit.stderr
    interval = f"{fit.slope - half:.3f} to {fit.slope + half:.3f}"
    print(f"{measure}: {fit.slope:.3f} ({interval}) a doubling, p = {fit.pvalue:.2g}")
