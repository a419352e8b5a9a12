#!/usr/bin/env bash
# Builds, then runs the tests.
#
#   scripts/test.sh [PRESET] [CTEST ARGUMENT...]
#
# Without ctest arguments it runs what that preset is for:
#   dev, release   everything except the label `slow` (soak tests, run before a release)
#   asan, ubsan    labels unit, conformance, fault, fuzz
#   tsan           everything below services/ (gRPC as packaged is not instrumented)
#   fuzz           the label fuzz: each corpus once, under libFuzzer's build
# With arguments they decide: scripts/test.sh dev -R HostTier --repeat until-fail:100
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in -h | --help) sed -n '2,11s/^# \{0,1\}//p' "scripts/test.sh"; exit 0 ;; esac
preset=dev
if [[ $# -gt 0 && "$1" != -* ]]; then
  preset=$1
  shift
fi

targets=()
arguments=("$@")
if [[ $# -eq 0 ]]; then
  case "$preset" in
    asan | ubsan)
      targets=(kvtier_sanitizer_tests)
      arguments=(-L '^(unit|conformance|fault|fuzz)$' -LE '^slow$') ;;
    tsan)
      targets=(kvtier_below_services_tests)
      arguments=(-L '^below_services$' -LE '^slow$') ;;
    fuzz)
      targets=(kvtier_fuzz_targets)
      arguments=(-L '^fuzz$') ;;
    *) arguments=(-LE '^slow$') ;;
  esac
fi

scripts/build.sh "$preset" ${targets[@]+"${targets[@]}"}

launch=()
if [[ "$preset" == tsan ]] && (($(cat /proc/sys/vm/mmap_rnd_bits 2> /dev/null || echo 28) > 28)); then
  # The runtime of g++ 12 cannot place its shadow memory when addresses are randomised that much.
  launch=(setarch "$(uname -m)" -R)
fi
${launch[@]+"${launch[@]}"} ctest --preset "$preset" -j "${KVTIER_JOBS:-$(nproc)}" "${arguments[@]}"
