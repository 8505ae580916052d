"""The sample of Phi-2's model card, as printed there but for the first import.

    python examples/card_sample.py FOLDER [--mode 1|2|3|4] [--max-length 200]

FOLDER is a checkpoint of Microsoft's layouts (phi-msft, mixformer-sequential), whose own code is
not run, or of transformers' (phi), which is then opened by the class's name. The modes are the
card's: 1 FP16 with flash attention, 2 FP16, 3 FP32, all on CUDA, and 4 FP32 on a CPU.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import phiscope.hf

MODES: dict[str, dict[str, Any]] = {  # as the card writes them
    "1": {
        "torch_dtype": "auto",
        "flash_attn": True,
        "flash_rotary": True,
        "fused_dense": True,
        "device_map": "cuda",
        "trust_remote_code": True,
    },
    "2": {"torch_dtype": "auto", "device_map": "cuda", "trust_remote_code": True},
    "3": {"torch_dtype": torch.float32, "device_map": "cuda", "trust_remote_code": True},
    "4": {"torch_dtype": torch.float32, "device_map": "cpu", "trust_remote_code": True},
}
PROMPT = '''def print_prime(n):
   """
   Print all primes between 1 and n
   """'''


def run_sample(folder: str, arguments: dict[str, Any], max_length: int) -> str:
    """What the card's sample prints."""
    family = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    auto = phiscope.hf.PhiForCausalLM if family == "phi" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, **arguments)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_attention_mask=False).to(model.device)
    outputs = model.generate(**inputs, max_length=max_length)
    text: str = tokenizer.batch_decode(outputs)[0]
    return text


def main() -> None:
    """Read the command line and print the text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--mode", choices=sorted(MODES), default="4")
    parser.add_argument("--max-length", type=int, default=200)
    options = parser.parse_args()
    if options.mode != "4" and not torch.cuda.is_available():
        parser.error(f"mode {options.mode} needs a CUDA device; mode 4 runs on a CPU")
    print(run_sample(options.folder, MODES[options.mode], options.max_length))


if __name__ == "__main__":
    main()
