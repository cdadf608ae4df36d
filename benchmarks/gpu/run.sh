#!/usr/bin/env bash
# Everything that a GPU has to show: the benchmarks of it, then its tests, each into OUT/NAME_CARD.json and .log.
#
#   bash benchmarks/gpu/run.sh [OUT [PART ...]]
#
# OUT is by default benchmarks/results; with PARTs only these run. The parts come in the order of what they are worth,
# and write what they have as they go, so that a run that is cut off keeps what it got. Each has a limit of its own, and
# what fails or runs out of time does not keep the next from running; SECONDS_IN_ALL ends the whole, and what is left
# can be run by name another time. On an H100 about nine minutes for the parts down to gpu_tests, and twenty for all.
#
# Needs torch, timm, tyro, rich, scikit-learn, pymoo and pytest; Ray and ONNX are not needed. Where there is no network,
# WHEELS is a folder of wheels of what is missing, which are installed from there. LIMIT_FACTOR multiplies the limits of
# the parts, for a machine that is slower: without a GPU all parts run in small, on the CPU, to show that they do.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results}
parts=" ${*:2} "
python=${PYTHON:-python3}
end=$(($(date +%s) + ${SECONDS_IN_ALL:-86400}))
factor=${LIMIT_FACTOR:-1}
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
  $python -m pip install -q --no-index --no-deps "$WHEELS"/*.whl || echo "== not all of $WHEELS could be installed"
fi
card=$($python -c 'import re, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
name = re.sub(r"nvidia|pcie|sxm\d*|\d+gb|hbm\d*e?", "", name.lower())
print(re.sub(r"[ -]+", "-", name).strip("-"))')
[ -n "$card" ] || { echo "error: $python cannot import torch"; exit 1; }
export PYTHONPATH=$PWD GPU_TESTS=1
echo "card: $card"

if [ "$card" = cpu ]; then
  device=cpu precision=fp32 amp=none resolution=32 quick=--quick space=mobilenet_v3_micro other=mobilenet_v3_micro
  graphs=eager compile=eager ways=eager
else
  device=cuda precision=bf16 amp=bf16 resolution=224 quick= space=ofa_mobilenet_v3 other=alphanet
  graphs=graphs compile=compile ways="eager graphs"
fi

chosen() { [ "$parts" = "  " ] || [[ $parts == *" $1 "* ]]; }

run() {  # NAME LIMIT COMMAND...: its output also in a log
  local left=$((end - $(date +%s))) most=$(($2 * factor)) begun=$SECONDS
  if [ $left -lt 20 ]; then
    echo "== $1 has no time left"
    return 0
  fi
  echo "== $1"
  timeout --kill-after 10 $((left < most ? left : most)) "${@:3}" 2>&1 | tee "$out/$1_$card.log"
  echo "== $1 ended with ${PIPESTATUS[0]} after $((SECONDS - begun)) s" | tee -a "$out/$1_$card.log"
}

part() { if chosen "$1"; then run "$@"; fi; }  # NAME LIMIT COMMAND...

compared() {  # NAME LIMIT SPACE BATCH WAYS ARGUMENTS...: a step beside the same plain models and their graphs
  run "$1" "$2" $python benchmarks/train_step.py --space "$3" --device $device --precision $precision \
    --resolutions $resolution --batch-sizes $([ $device = cpu ] && echo 2 || echo "$4") --no-growth --ways $5 "${@:6}" \
    --json "$out/$1_$card.json"
}

step() {  # as compared
  chosen "$1" || return 0
  compared "$@"
  if [ ! -s "$out/$1_$card.json" ] && [[ $5 == *" "* ]]; then  # one way may fail: then what there is without it
    compared "$1_eager" "$2" "$3" "$4" eager "${@:6}"
  fi
}

training() {  # NAME STEP RESOLUTION_STEPS: a minute of a training
  part "$1" 150 $python benchmarks/gpu/training.py --space $space --device $device --amp $amp --step "$2" \
    --resolution-steps "$3" $([ $device = cpu ] && echo --batch-size 2 --seconds 4) --json "$out/$1_$card.json"
}

step train_step_64 240 $space 64 "$ways" --steps 5 --known 3 --repeats 3
step train_step_256 240 $space 256 "$ways" --steps 4 --known 3 --repeats 3
part candidates 150 $python benchmarks/gpu/candidates.py $quick --device $device --json "$out/candidates_$card.json"
part gpu_tests 200 $python -m pytest -q -p no:benchmark -p no:cacheprovider --tb=short --maxfail=20 --durations=15 tests/gpu
training training_1 $graphs 1
training training_200 $graphs 200
step train_step_64_compile 240 $space 64 $compile --steps 3 --known 2 --repeats 3
step train_step_64_alphanet 200 $other 64 "$ways" --steps 4 --known 3 --repeats 3
training training_eager eager 1
part new_shapes 90 $python benchmarks/gpu/new_shapes.py $([ $device = cpu ] && echo --batch-size 2) --device $device \
  --json "$out/new_shapes_$card.json"
part step_overhead 60 $python benchmarks/step_overhead.py --quick --space $space --json "$out/step_overhead_$card.json"
