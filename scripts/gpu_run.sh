#!/usr/bin/env bash
# Everything that needs a GPU, in one command of under nine minutes: environment and probes, correctness, tuning table,
# benchmark tables, efficiency suite. A step that fails or overruns is recorded and the next one runs.
#
#   scripts/gpu_run.sh [--out FOLDER] [--shape NAME] [--model NAME] [--dry-run]
#
# FOLDER defaults to $OUT, else docs/results/<gpu>. --dry-run walks the same steps on a CPU with small sizes and marks
# every file as such: it proves the script, and measures nothing.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-} shape=llama-3.2-1b model=smollm2-135m dry=0
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift ;;
    --shape) shape=$2; shift ;;
    --model) model=$2; shift ;;
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,9p' "$0" | cut -c3-; exit 0 ;;
    *) echo "gpu_run.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
  shift
done

python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
# without it the current folder comes first, where hambench lacks the four folders beside it
export PYTHONSAFEPATH=1
if ! $python -c 'import hambench.kernels, hambench.methods' 2>/dev/null; then
  # a borrowed machine: nothing is installed, so the five folders are put under one name
  tree=$(mktemp -d)/hambench
  mkdir -p "$tree"
  ln -s "$PWD"/hambench/* "$tree/"
  for folder in methods kernels suites reports; do ln -s "$PWD/$folder" "$tree/$folder"; done
  export PYTHONPATH="$(dirname "$tree")${PYTHONPATH:+:$PYTHONPATH}"
fi
hambench() { $python -c 'from hambench.cli import main; main()' "$@"; }
export -f hambench 2>/dev/null
export python PYTHONUNBUFFERED=1

has_gpu=$($python -c 'import torch; print(int(torch.cuda.is_available()))' 2>/dev/null || echo 0)
if [ "$has_gpu" != 1 ] && [ $dry = 0 ]; then
  echo "gpu_run.sh: torch finds no CUDA device here; --dry-run walks the steps on a CPU" >&2
  exit 2
fi
if [ -z "$out" ]; then
  name=$($python -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))' 2>/dev/null)
  [ $dry = 1 ] && name=dry-run
  out=docs/results/$name
fi
mkdir -p "$out"
started=$(date +%s)
: >"$out/steps.jsonl"

# step NAME SECONDS COMMAND...: runs it with a limit; its output is kept in NAME.log, its fate in steps.jsonl
step() {
  local name=$1 limit=$2 begin end status
  shift 2
  begin=$(date +%s)
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" bash -c "$*" >"$out/$name.log" 2>&1
  status=$?
  end=$(date +%s)
  printf '{"step": "%s", "status": %d, "seconds": %d, "limit_s": %d}\n' \
    "$name" $status $((end - begin)) "$limit" >>"$out/steps.jsonl"
  [ $status = 0 ] || { echo "   status $status"; tail -n 15 "$out/$name.log"; }
}

quoted=$(printf '%q' "$out")
# the dry run plans the very words that the real one runs
# a size rather than a budget, which a CPU that only plans could not keep
efficiency="--model $model --methods vanilla,speculative --suite efficiency --limit 1 --max-new-tokens 64"
if [ $dry = 1 ]; then
  step environment 60 "$python scripts/gpu_probe.py --out $quoted --dry-run"
  step kernels 60 "hambench bench kernels --device cpu --shape smollm2-135m --rows 1 --only gemv --out $quoted"
  step correctness 100 "$python -m pytest -q -p no:cacheprovider --import-mode=importlib tests/kernels/test_verify_accept.py"
  step regimes 60 "hambench bench regimes --dry-run --out $quoted"
  step efficiency 100 "hambench plan $efficiency --device cpu"
else
  step environment 45 "$python scripts/gpu_probe.py --out $quoted"
  # marked gpu or not: there, every kernel test runs on the GPU
  step correctness 165 "$python -m pytest -q -p no:cacheprovider --import-mode=importlib tests/kernels -m 'not slow'"
  step tuning 90 "hambench bench kernels --tune $quoted/tuned.json --shape $shape --rows 1 --only nothing --no-compile"
  tiles=""
  [ -s "$out/tuned.json" ] && tiles="--tiles $quoted/tuned.json"
  step kernels 75 "hambench bench kernels --shape $shape $tiles --out $quoted"
  step kernels-small 35 "hambench bench kernels --shape smollm2-135m $tiles --no-compile --out $quoted"
  step regimes 90 "hambench bench regimes --shape $shape --out $quoted"
  step efficiency 35 "hambench run $efficiency --device cuda --out $quoted/efficiency-$started"
fi

$python scripts/gpu_probe.py --summary "$out" --seconds $(($(date +%s) - started)) $([ $dry = 1 ] && echo --dry-run)
echo "== $(($(date +%s) - started)) s; results in $out"
grep -q '"step": "correctness", "status": 0' "$out/steps.jsonl"
