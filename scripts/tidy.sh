#!/usr/bin/env bash
# Runs clang-tidy 14 on the given sources, or on all that the preset `dev` compiles. Slow (seconds
# per file), so it is no ctest: run it on what you changed.
#
#   scripts/tidy.sh [FILE.cc...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -f build/dev/compile_commands.json ]] || scripts/build.sh dev
files=("$@")
if [[ ${#files[@]} -eq 0 ]]; then
  mapfile -t files < <(find base kvcache compressor store services bench tests -name '*.cc' \
    -not -path '*/compile_fail/*' 2> /dev/null | sort)
fi
# -Wno-unknown-warning-option: the commands are g++'s.
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" \
  clang-tidy-14 -p build/dev --quiet --extra-arg=-Wno-unknown-warning-option
