"""How fast: each figure measured here and now, printed and kept in runs/benchmark.json.

  make bench                  # or BENCH=extract

extract: messages a second out of a generated .tar.gz of 50,000, at two sizes, with the peak memory (a minute).
"""

import argparse
import csv
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
AUTHOR = "maud.okafor@ternandtallow.example"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.usage = argparse.SUPPRESS  # a wrong name ends in one line
    parts = {"extract": bench_extract}
    parser.add_argument("part", nargs="?", choices=parts, help="(default all)")
    wanted = parser.parse_args(argv).part
    file = ROOT / "runs" / "benchmark.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    for part in [wanted] if wanted else parts:
        found = parts[part]()
        figures |= found
        print("".join(f"{name:32}{value:12,.2f}\n" for name, value in found.items()), end="")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(figures, indent=1) + "\n")
    print(file.relative_to(ROOT))


def bench_extract(sizes=(25_000, 50_000)):
    """extract on archives of two sizes: messages a second and peak memory at the larger, seconds a message larger / smaller."""
    seconds = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "mail.tar.gz"
            write_archive(archive, size)
            start = time.perf_counter()
            command = [sys.executable, ROOT / "prepare_data.py", "extract", archive, Path(folder) / "replies.csv", "--author", AUTHOR]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[size] = time.perf_counter() - start
    small, large = sizes
    return {
        "extract_messages_per_second": large / seconds[large],
        "extract_linearity": seconds[large] / large / (seconds[small] / small),
        "extract_peak_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9,
    }


def write_archive(path, size):
    """A .tar.gz of `size` messages made of the sample's mails; every fourth is the author's and quotes what it answers."""
    with (ROOT / "data" / "sample" / "maud_okafor_train_43.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for i in range(size):
            row, own = rows[i % len(rows)], i % 4 == 3
            quoted = f"\n\n-----Original Message-----\nFrom: Joss Whitfield\nSent: Monday\nTo: Maud\nSubject: {i}\n\n{row['mail']}"
            message = (
                f"Message-ID: <{i}@tern.example>\nDate: Mon, {1 + i % 28} Apr 2019 10:00:00 +0100\nFrom: {AUTHOR if own else 'joss@tern.example'}\n"
                f"To: someone@tern.example\nSubject: RE: lamp {i}\n" + (f"In-Reply-To: <{i - 1}@tern.example>\n" if i % 8 == 7 else "")
                + f"Content-Type: text/plain; charset=utf-8\n\n{row['response'] + str(i) + quoted if own else row['mail'] * 8}\n"
            ).encode()  # fmt: skip
            entry = tarfile.TarInfo(f"maildir/okafor-m/{'sent' if own else 'inbox'}/{i}.")
            entry.size = len(message)
            archive.addfile(entry, io.BytesIO(message))


if __name__ == "__main__":
    main()
