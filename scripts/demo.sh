#!/usr/bin/env bash
# Compresses a document once, kills what compressed and stored it, restarts the store alone, and lets
# a separate worker answer 200 questions about the document from the stored cache, at four ratios,
# beside the full cache, random eviction and SnapKV.
#
#   scripts/demo.sh [FILE]    FILE: the text to use; default tests/fixtures/documents/demo.txt
#
# The last line is `demo: ok {...}`, one JSON object. Everything that was started is stopped, also on
# Ctrl-C; everything that was written is removed.
#
# KVTIER_PRESET=dev       use another build than release
# KVTIER_SKIP_BUILD=1     use build/<preset>/bin (or KVTIER_BIN_DIR) as it is
# KVTIER_DEMO_MODEL=DIR   use another checkpoint than tests/fixtures/model
# KVTIER_DEMO_KEEP=DIR    keep questions, answers, a picture of the object (object.svg), logs and the
#                         store's folder in DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly RATIOS=(1.0 0.6 0.3 0.1)
readonly READY_SECONDS=60   # A server that has not opened its port by then will not.
readonly DRAIN_SECONDS=10   # A server that has not ended by then after SIGTERM is killed.

case "${1:-}" in -h | --help) sed -n '2,16s/^# \{0,1\}//p' scripts/demo.sh; exit 0 ;; esac

say() { printf '== %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

(($# <= 1)) || fail "one FILE at most (try --help)"
document=${1:-tests/fixtures/documents/demo.txt}
model=${KVTIER_DEMO_MODEL:-tests/fixtures/model}
[[ -f "$document" && -r "$document" ]] || fail "cannot read $document"
[[ -s "$document" ]] || fail "$document is empty: a context has at least 1 byte"
[[ -f "$model/config.json" ]] || fail "no checkpoint in $model"

preset=${KVTIER_PRESET:-release}
if [[ -z "${KVTIER_SKIP_BUILD:-}" ]]; then
  scripts/build.sh "$preset" kvtier-store kvtier-compressor kvtier-worker kvtierctl kvtier-eval
fi
bin=${KVTIER_BIN_DIR:-build/$preset/bin}
for program in kvtier-store kvtier-compressor kvtier-worker kvtierctl kvtier-eval; do
  [[ -x "$bin/$program" ]] || fail "$bin/$program is missing; run scripts/build.sh $preset"
done

started=$SECONDS
work=$(mktemp -d "${TMPDIR:-/tmp}/kvtier-demo.XXXXXX")
declare -A pids=()

# The servers get SIGTERM together, a deadline, then SIGKILL.
cleanup() {
  local status=$? name deadline=$((SECONDS + DRAIN_SECONDS))
  trap '' INT TERM
  for name in "${!pids[@]}"; do kill -TERM "${pids[$name]}" 2> /dev/null || true; done
  for name in "${!pids[@]}"; do
    while kill -0 "${pids[$name]}" 2> /dev/null && ((SECONDS < deadline)); do sleep 0.05; done
    kill -KILL "${pids[$name]}" 2> /dev/null || true
    wait "${pids[$name]}" 2> /dev/null || true
  done
  if [[ -n "${KVTIER_DEMO_KEEP:-}" ]]; then
    mkdir -p "$KVTIER_DEMO_KEEP"
    cp -r "$work/." "$KVTIER_DEMO_KEEP/"
  fi
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME PROGRAM FLAG...: runs a server on free ports and waits until it serves.
start() {
  local name=$1 program=$2 deadline=$((SECONDS + READY_SECONDS))
  shift 2
  rm -f "$work/$name.port"
  "$bin/$program" --listen=127.0.0.1:0 --metrics_listen=127.0.0.1:0 --port_file="$work/$name.port" \
    "$@" >> "$work/$name.log" 2>&1 &
  pids[$name]=$!
  until [[ -s "$work/$name.port" ]]; do
    if ! kill -0 "${pids[$name]}" 2> /dev/null || ((SECONDS >= deadline)); then
      tail -n 20 "$work/$name.log" >&2
      fail "$program did not start"
    fi
    sleep 0.05
  done
}

address() { printf '127.0.0.1:%s' "$(cut -d' ' -f1 "$work/$1.port")"; }

# As a crash or the kernel's memory killer ends a process: no handler runs.
crash() {
  kill -KILL "${pids[$1]}"
  wait "${pids[$1]}" 2> /dev/null || true
  unset "pids[$1]"
}

# memory NAME: resident now, and the most it ever was, in MB.
memory() {
  awk -v name="$1" '/^VmHWM:/ {peak = $2} /^VmRSS:/ {now = $2}
    END {printf "%s %.1f MB (peak %.1f MB)", name, now * 1024 / 1e6, peak * 1024 / 1e6}' \
    "/proc/${pids[$1]}/status"
}

# quietly COMMAND...: shows stderr (progress) on a terminal, else only if the command fails.
quietly() {
  if [[ -t 2 ]]; then
    "$@"
  elif ! "$@" 2> "$work/stderr"; then
    cat "$work/stderr" >&2
    return 1
  fi
}

say "store and compressor on loopback, model $model"
start store kvtier-store --data_dir="$work/data"
start compressor kvtier-compressor --model="$model" --store="$(address store)"

say "compress $document ($(wc -c < "$document") bytes)"
quietly "$bin/kvtierctl" compress --compressor="$(address compressor)" --file="$document" \
  --durability=disk --fidelity=2 | tee "$work/compress.txt" || fail "could not compress $document"
key=$(awk '$1 == "key" {print $2}' "$work/compress.txt")
compressor_memory=$(memory compressor)

say "SIGKILL store and compressor; restart only the store"
crash store
crash compressor
start store kvtier-store --data_dir="$work/data"
"$bin/kvtierctl" verify "$key" --store="$(address store)"

say "what each ratio keeps"
"$bin/kvtierctl" stat "$key" --store="$(address store)" --plot="$work/object.svg"

say "a worker that has never seen the document answers 200 questions about it"
start worker kvtier-worker --model="$model" --store="$(address store)"
"$bin/kvtier-eval" questions --document="$document" --model="$model" --count=200 --seed=1 \
  --out="$work/questions.json" || fail "could not draw questions from $document"
answers=()
for ratio in "${RATIOS[@]}"; do
  quietly "$bin/kvtierctl" ask --worker="$(address worker)" --key="$key" --ratio="$ratio" \
    --questions="$work/questions.json" --parallel="$(nproc)" --out="$work/answers-$ratio.json"
  answers+=("$work/answers-$ratio.json")
done

say "the same questions over the full cache and over other methods at the same budgets"
"$bin/kvtier-eval" baselines --model="$model" --document="$document" \
  --questions="$work/questions.json" --ratios=0.6,0.3,0.1 --random_seeds=5 \
  --out="$work/baselines.json"

say "resident memory: $(memory store), $compressor_memory, $(memory worker)"
say "took $((SECONDS - started)) s"
list=$(IFS=,; printf '%s' "${answers[*]}")
"$bin/kvtier-eval" report --questions="$work/questions.json" --answers="$list" \
  --baselines="$work/baselines.json"
