"""How a run's replies look: one word of thanks, cut off, and what the style of the others is.

  python docs/results/replies.py runs/experience1/{exp1.J-J,exp2.K-J,untuned}

Counts the first run's replies that are one word of thanks. For each run and for the author, prints
how many of the other mails' replies pass for the author's, with a 95 % interval (Wilson) and the
exact McNemar test against the first run; and for each run the median of words, the replies that
were cut off and their share of all words, and how many pass of those that ended and of the others.
"""

import json
import statistics
import sys
from pathlib import Path

from scipy.stats import binomtest

replies, styles = {}, {}
for run in sys.argv[1:]:
    lines = Path(run, "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    replies[run] = [json.loads(line) for line in lines]
    metrics = json.loads(Path(run, "metrics.json").read_text(encoding="utf-8"))
    styles[run] = [passed for passed, _ in metrics["per_mail"]["style"]]
    styles["the author"] = [passed for passed, _ in metrics["reference_per_mail"]["style"]]

rows, first = replies[sys.argv[1]], styles[sys.argv[1]]
rest = [i for i, row in enumerate(rows) if row["prediction"].strip().lower() != "thanks."]
print(f"one word of thanks: {len(rows) - len(rest)} of {len(rows)}; of the {len(rest)} others pass")
for run, style in styles.items():
    passed = int(sum(style[i] for i in rest))
    low, high = binomtest(passed, len(rest)).proportion_ci(method="wilson")
    better, worse = (sum(sign * (first[i] - style[i]) > 0 for i in rest) for sign in (1, -1))
    p = binomtest(better, better + worse).pvalue if better + worse else 1
    print(f"{run}: {passed} ({low:.2f} to {high:.2f}), p = {p:.2g}", end="")
    if run in replies:
        words = [len(row["prediction"].split()) for row in replies[run]]
        cut = [row["finish_reason"] == "length" for row in replies[run]]
        share = sum(count for count, is_cut in zip(words, cut, strict=True) if is_cut) / sum(words)
        print(f"; {statistics.median(words)} words; {sum(cut)} cut off, {share:.0%} of all words")
        for kind, wanted in (("ended", False), ("cut off", True)):
            passes = [one for one, is_cut in zip(style, cut, strict=True) if is_cut == wanted]
            print(f"    {kind}: {int(sum(passes))} of {len(passes)} pass")
    else:
        print()
