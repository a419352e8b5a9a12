#!/usr/bin/env bash
# Runs clang-tidy 14 on the given sources, or on all of ours that the preset `dev` compiles. Slow (seconds
# per file), so it is no ctest: run it on what you changed.
#
#   scripts/tidy.sh [FILE.cc...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -f build/dev/compile_commands.json ]] || scripts/build.sh dev
files=("$@")
if [[ ${#files[@]} -eq 0 ]]; then
  # A file that is not compiled here (all of CUDA's where there is no toolkit) has no command to
  # parse it with. Kernels (.cu) are nvcc's.
  mapfile -t files < <(comm -12 \
    <(find base kvcache compressor store cuda services bench tests -name '*.cc' | sort) \
    <(python3 -c 'import json, os, sys
for entry in json.load(open("build/dev/compile_commands.json")):
    print(os.path.relpath(os.path.join(entry["directory"], entry["file"])))' | sort -u))
fi
# -Wno-unknown-warning-option: the commands are g++'s.
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" \
  clang-tidy-14 -p build/dev --quiet --extra-arg=-Wno-unknown-warning-option
