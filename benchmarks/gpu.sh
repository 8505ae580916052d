#!/usr/bin/env bash
# On a machine with a CUDA GPU: check every CUDA mode against float64 and fp32, then time them.
#     benchmarks/gpu.sh [FOLDER]     where a full-size random checkpoint is written and reused
# Needs torch and transformers as they are there; writes benchmarks/results/*_gpu.json.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
folder="${1:-${TMPDIR:-/tmp}/phiscope-full-size-float16}"
modes=(fp32 fp16 fp16-flash bf16 bf16-flash fp16-flex fp32-flex)

[ -e "$folder/config.json" ] ||
    python3 benchmarks/make_checkpoint.py "$folder" --layout D --dtype float16
python3 benchmarks/precision.py "$folder" --modes "${modes[@]}" --peer --name precision_gpu
python3 benchmarks/full_size.py "$folder" --modes "${modes[@]}" --name full_size_gpu
python3 benchmarks/hf.py "$folder" --dtypes float16 bfloat16 float32 --device cuda --name hf_gpu
if python3 -c 'import pyarrow, tokenizers'; then
    python3 benchmarks/extraction.py --checkpoint "$folder" --peers-python python3 \
        --modes fp16-flash fp16 --token-budget 16384 --name extraction_gpu
else
    echo "no extraction was timed: it needs pyarrow and tokenizers" >&2
fi
