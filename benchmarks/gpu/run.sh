#!/usr/bin/env bash
# Everything that a GPU has to show: its tests, then the benchmarks of it, each into benchmarks/results/NAME_CARD.json.
#
#   bash benchmarks/gpu/run.sh [OUT [PART ...]]
#
# In an environment with torch, timm, tyro, rich, scikit-learn and pytest; Ray is not needed. OUT, by default
# benchmarks/results, gets the results and the logs; with PARTs only these run. Each part prints as it goes and is ended
# after its own limit, so that what is done is kept. About twenty minutes on an H100 altogether.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results}
parts=" ${*:2} "
python=${PYTHON:-python3}
mkdir -p "$out"
card=$($python -c 'import re, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
name = re.sub(r"nvidia|pcie|sxm\d*|\d+gb|hbm\d*e?", "", name.lower())
print(re.sub(r"[ -]+", "-", name).strip("-"))')
device=$([ "$card" = cpu ] && echo cpu || echo cuda)
precision=$([ "$card" = cpu ] && echo fp32 || echo bf16)
quick=$([ "$card" = cpu ] && echo --quick)
echo "card: $card"
export PYTHONPATH=$PWD

part() {  # NAME LIMIT COMMAND...: one part, its output also in a log
  [ "$parts" = "  " ] || [[ $parts == *" $1 "* ]] || return 0
  echo "== $1"
  timeout "$2" "${@:3}" 2>&1 | tee "$out/$1_$card.log"
  echo "== $1 ended with ${PIPESTATUS[0]}"
}

GPU_TESTS=1 part gpu_tests 240 $python -m pytest -q -p no:benchmark --tb=line --maxfail=20 tests/gpu
part step_overhead 60 $python benchmarks/step_overhead.py --quick --json "$out/step_overhead_$card.json"
part new_shapes 90 $python benchmarks/gpu/new_shapes.py --device $device --json "$out/new_shapes_$card.json"
for batch in 64 256; do
  for way in eager $([ "$card" = cpu ] || echo graphs); do
    part train_step_${batch}_$way 200 $python benchmarks/train_step.py --device $device --precision $precision \
      --resolutions $([ "$card" = cpu ] && echo 32 || echo 224) --batch-sizes $([ "$card" = cpu ] && echo 2 || echo $batch) \
      --no-growth --steps 6 --known 3 --way $way --json "$out/train_step_${batch}_${way}_$card.json"
  done
done
part train_step_64_compile 240 $python benchmarks/train_step.py --device $device --precision $precision \
  --resolutions $([ "$card" = cpu ] && echo 32 || echo 224) --batch-sizes $([ "$card" = cpu ] && echo 2 || echo 64) \
  --no-growth --steps 3 --known 2 --way compile --json "$out/train_step_64_compile_$card.json"
part candidates 240 $python benchmarks/gpu/candidates.py $quick --device $device --json "$out/candidates_$card.json"
