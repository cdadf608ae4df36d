#!/usr/bin/env bash
# Everything that a GPU has to show: its tests, then the benchmarks of it, each into benchmarks/results/NAME_CARD.json.
#
#   bash benchmarks/gpu/run.sh [OUT]
#
# In an environment with torch, timm, tyro, rich, scikit-learn and pytest; Ray is not needed. OUT, by default
# benchmarks/results, gets the results and the log of the tests. Each part prints as it goes and is ended after its own
# limit, so that what is done is kept. About ten minutes on an H100.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results}
python=${PYTHON:-python3}
mkdir -p "$out"
card=$($python -c 'import re, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
name = re.sub(r"nvidia|pcie|sxm\d*|\d+gb|hbm\d*e?", "", name.lower())
print(re.sub(r"[ -]+", "-", name).strip("-"))')
device=$([ "$card" = cpu ] && echo cpu || echo cuda)
precision=$([ "$card" = cpu ] && echo fp32 || echo bf16)
echo "card: $card"
export PYTHONPATH=$PWD

part() {  # NAME LIMIT COMMAND...: one part, its output also in a log
  echo "== $1"
  timeout "$2" "${@:3}" 2>&1 | tee "$out/$1_$card.log"
  echo "== $1 ended with ${PIPESTATUS[0]}"
}

GPU_TESTS=1 part gpu_tests 240 $python -m pytest -q -p no:benchmark --tb=line --maxfail=20 tests/gpu
part step_overhead 60 $python benchmarks/step_overhead.py --quick --json "$out/step_overhead_$card.json"
part new_shapes 90 $python benchmarks/gpu/new_shapes.py --device $device --json "$out/new_shapes_$card.json"
part train_step 240 $python benchmarks/train_step.py --device $device --precision $precision --resolutions 224 \
  --batch-sizes 64 --no-growth --steps 6 --json "$out/train_step_$card.json"
