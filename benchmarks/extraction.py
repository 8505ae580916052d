"""Extract the same texts with phiscope and with its peers, side by side in one run.

Each block of texts is run by everyone in turn, in rotated order, and never by two at once: the
peers share one process and one bf16 model, phiscope has a process with the same weights, and this
one asks them through pipes. The limit of the matrix products is measured in between, and everyone's
error against float64 on a few short texts. The peers need a Python with transformers,
sentence-transformers, transformer_lens, interp-engine and nnsight; one that lacks is left out.

    python benchmarks/extraction.py --checkpoint FOLDER --peers-python PATH
    python benchmarks/extraction.py --small --peers-python PATH      # a random small model
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from make_checkpoint import main as make_checkpoint
from measure import write_result

from phiscope.config import PhiConfig, read_config
from phiscope.runtime import MODES

sys.path.append(str(Path(__file__).parent / "peers"))
from accuracy import measure_errors
from corpus import Corpus, count_tokens, make_lognormal, make_short
from crew import OURS, PEERS, Crew
from outcome import KINDS
from products import DTYPES, Products
from summary import Comparison, all_speeds, describe_products, make_table

CPU_MODES = ("bf16-cpu", "bf16-fp32-cpu")
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SMALL = ["hidden_size=256", "num_hidden_layers=4", "num_attention_heads=8"]
SMALL += ["num_key_value_heads=8", "intermediate_size=1024"]
NUM_ERROR_TEXTS = 8
LARGEST_ERROR = 0.1
SHORT_KINDS = {"layer_pooled"}
METHOD = (
    "Every block is run by every setting in turn, the order rotated from block to block. A forward"
    " that gives several kinds of result is run once and charged to each of them, with what keeping"
    " that kind takes. Peers keep results in memory, phiscope writes them to a store. Errors are"
    " against float64 arithmetic on the same weights: of all numbers, of the worst row"
    " relative to its length, and of all rows together."
)


def main() -> None:
    options = parse()
    with TemporaryDirectory() as folder:
        if options.small:
            options.checkpoint = Path(folder) / "small"
            with redirect_stdout(sys.stderr):
                make_checkpoint([str(options.checkpoint), "--dtype", "bfloat16", "--set", *SMALL])
        figures = run(options, Path(folder))
    if options.name is None:
        print(json.dumps(figures, indent=2))
    else:
        write_result(options.name, figures)
    print(make_table(figures), file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a folder; see make_checkpoint.py")
    parser.add_argument("--small", action="store_true", help="a small random model instead")
    parser.add_argument("--peers-python", help="the Python of an environment with the peers")
    parser.add_argument("--texts", type=int, help="of either corpus; default 256, small: 32")
    parser.add_argument("--blocks", type=int, help="default 8, small: 2")
    parser.add_argument(
        "--peers-every", type=int, default=1, metavar="N", help="peers run each Nth block only"
    )
    parser.add_argument("--token-budget", type=int, default=2048, help="of phiscope's batches")
    parser.add_argument(
        "--modes", nargs="+", default=CPU_MODES, choices=MODES, help="phiscope's, of one dtype and"
        " device, which are the peers', too"
    )  # fmt: skip
    parser.add_argument("--name", help="of the result; default extraction, small: not written")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="NAME")
    options = parser.parse_args()
    if options.small == (options.checkpoint is not None):
        parser.error("give either --checkpoint FOLDER or --small")
    options.texts = options.texts or (32 if options.small else 256)
    options.blocks = options.blocks or (2 if options.small else 8)
    if options.name is None and not options.small:
        options.name = "extraction"
    return options


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = read_config(options.checkpoint)
    corpora = {
        "lognormal": make_lognormal(options.texts, options.blocks),
        "short": make_short(options.texts, max(1, options.blocks // 4)),
    }
    crew = Crew()
    arithmetics = [DTYPE_NAMES[MODES[mode].compute_dtype] for mode in options.modes]
    products = Products(config, list(dict.fromkeys(arithmetics)), MODES[options.modes[0]].device)
    try:
        versions = start(crew, options)
        errors = find_errors(crew, folder, config.num_hidden_layers // 2 + 1)
        flops: list[dict[str, float]] = []
        seconds = {
            name: run_blocks(crew, corpus, products, flops, options.peers_every)
            for name, corpus in corpora.items()
        }
        memory = describe_memory(crew)
    finally:
        crew.close()
    figures = describe(config, corpora, products, flops)
    figures |= {"versions": versions, "absent": crew.absent, "memory": memory}
    figures["minutes"] = round(crew.seconds / 60, 1)
    return figures | compare(crew, options.modes, corpora, seconds, figures, errors)


def start(crew: Crew, options: argparse.Namespace) -> dict[str, str]:
    """Phiscope first, since a peer that needs much memory looks at what is left."""
    checkpoint, budget = str(options.checkpoint), str(options.token_budget)
    crew.start(OURS, sys.executable, "ours.py", checkpoint, budget, *options.modes)
    if options.peers_python is None:
        crew.absent |= dict.fromkeys(options.peers, "no --peers-python")
        return {}
    mode = MODES[options.modes[0]]
    dtype = str(mode.dtype).removeprefix("torch.")
    worker = crew.start(
        *("peers", options.peers_python, "worker.py", checkpoint, dtype, mode.device),
        *options.peers,
    )
    crew.absent |= worker.ask("absent")
    return worker.ask("versions")


def find_errors(crew: Crew, folder: Path, state: int) -> dict[str, dict[str, Any]]:
    """Everyone's errors on a few short texts; after these everyone is warm as well."""
    (texts,) = make_short(NUM_ERROR_TEXTS, 1, seed=2).blocks
    reference, errors = None, {}
    if "peers" in crew.workers:
        path = folder / "reference.pt"
        crew.workers["peers"].ask("reference", texts=texts, path=str(path))
        reference = torch.load(path, weights_only=True)
        crew.tell("the float64 reference is there")
    for name in crew.present:
        path = folder / "values.pt"
        if crew.ask(name, "save", texts=texts, path=str(path)) and reference:
            errors[name] = measure_errors(path, reference, state)
            check_errors(crew, name, errors[name])
    return errors


def check_errors(crew: Crew, name: str, errors: dict[str, dict[str, float]]) -> None:
    """Who is this far from the reference has run other texts, or another layer."""
    worst = max(error["relative"] for error in errors.values())
    crew.tell(f"  {name}: relative error {worst}")
    if not worst < LARGEST_ERROR:
        crew.absent[name] = f"gives other numbers: relative error {worst}"


def run_blocks(
    crew: Crew,
    corpus: Corpus,
    products: Products,
    flops: list[dict[str, float]],
    peers_every: int,
) -> dict[str, dict[str, dict[int, float]]]:
    """Seconds by setting, kind and number of the block."""
    seconds: dict[str, dict[str, dict[int, float]]] = {}
    for number, texts in enumerate(corpus.blocks):
        flops.append(products.measure(count_tokens(texts)))
        crew.tell(f"{corpus.name}: block {number + 1} of {len(corpus.blocks)}")
        for name in rotate(crew.present, number / len(corpus.blocks)):
            is_wanted = number % peers_every == 0 or crew.is_ours(name)
            kinds = wanted_kinds(corpus, crew.settings[name]) if is_wanted else []
            answer = crew.ask(name, "run", texts=texts, kinds=kinds) if kinds else None
            if answer is not None:
                for kind, value in answer.items():
                    seconds.setdefault(name, {}).setdefault(kind, {})[number] = value
                crew.tell(f"  {name}: {describe_speeds(texts, answer)}")
    return {name: kinds for name, kinds in seconds.items() if name in crew.present}


def wanted_kinds(corpus: Corpus, setting: dict[str, Any]) -> list[str]:
    if corpus.name != "short":
        return setting["kinds"]
    return [kind for kind in setting["kinds"] if kind in SHORT_KINDS and setting["takes_short"]]


def describe_speeds(texts: tuple[list[int], ...], answer: dict[str, float]) -> str:
    num_tokens = count_tokens(texts)
    speeds = (f"{kind} {num_tokens / value:.1f}" for kind, value in answer.items())
    return f"{', '.join(speeds)} tokens/s"


def rotate(names: list[str], share: float) -> list[str]:
    begin = int(len(names) * share)
    return [*names[begin:], *names[:begin]]


def describe_memory(crew: Crew) -> dict[str, float | None]:
    """Peaks of both processes, in GB; ours holds the weights once for both modes."""
    asked = {
        "weights_gb": crew.ask_process(OURS, "weights"),
        "phiscope_peak_gb": crew.ask_process(OURS, "peak_memory"),
        "peers_peak_gb": crew.ask_process("peers", "peak_memory"),
    }
    return {name: value and round(value / 1e9, 2) for name, value in asked.items()}


def describe(
    config: PhiConfig,
    corpora: dict[str, Corpus],
    products: Products,
    flops: list[dict[str, float]],
) -> dict[str, Any]:
    layer = config.num_hidden_layers // 2
    return {
        "parameters": config.num_parameters,
        "layer": layer,
        "method": METHOD,
        "kinds": KINDS,
        "texts": {name: corpus.describe() for name, corpus in corpora.items()},
        "matrix_products": describe_products(flops, products.token_flops, layer + 1),
    }


def compare(
    crew: Crew,
    modes: Sequence[str],
    corpora: dict[str, Corpus],
    seconds: dict[str, Any],
    figures: dict[str, Any],
    errors: dict[str, Any],
) -> dict[str, Any]:
    """Each setting's figures, and phiscope's ratios to the peers'."""
    lognormal, short = (all_speeds(corpora[name], seconds[name]) for name in corpora)
    settings = {
        name: {
            "what": setting["what"],
            "tokens_per_second": lognormal.get(name, {}),
            "short_tokens_per_second": short.get(name, {}),
            "errors": errors.get(name, {}),
        }
        for name, setting in crew.settings.items()
        if name in crew.present
    }
    products = figures["matrix_products"]
    ratios = {
        name: Comparison(
            name, DTYPE_NAMES[MODES[mode].compute_dtype], crew.settings, lognormal, short, products
        ).figures()
        for mode in modes
        if (name := f"phiscope {mode}") in crew.present
    }
    return {"ratios": ratios, "settings": settings}


if __name__ == "__main__":
    main()
