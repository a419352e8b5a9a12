#!/usr/bin/env bash
# Installs what the build needs and is missing, on Debian 12 or Ubuntu 24.04. Safe to repeat: with
# everything there it changes nothing and needs no rights.
#
#   scripts/install-deps.sh            install what is missing (as root, or through sudo)
#   scripts/install-deps.sh --check    print what is missing; exit 1 if anything is
#   scripts/install-deps.sh --cuda     also the headers of cuDNN's frontend, into build/deps (no rights
#                                      needed). The toolkit, cuDNN and NCCL come from NVIDIA.
set -euo pipefail

packages=(
  # Compilers and tools. clang 14 is for fuzzing and analysis; the format is pinned to its version.
  g++ cmake ninja-build ccache pkg-config git python3
  clang-14 clang-tidy-14 clang-format-14 libclang-rt-14-dev
  # services/ and proto/
  libgrpc++-dev libgrpc-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev
  prometheus-cpp-dev
  # store/
  librocksdb-dev
  # compressor/; oneDNN's CMake package asks for the OpenCL loader
  libdnnl-dev ocl-icd-opencl-dev nlohmann-json3-dev
  # base/ and kvcache/
  libabsl-dev libspdlog-dev libssl-dev libisal-dev libzstd-dev
  # tests/ and bench/
  libgtest-dev libgmock-dev
)

say() { printf 'install-deps: %s\n' "$*"; }

# Headers only (MIT), from one pinned wheel of PyPI: the same file whatever Python runs here.
frontend_version=1.32.0
frontend_sha256=c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0
frontend_folder=build/deps/cudnn-frontend

install_frontend() {
  local work header="$frontend_folder/include/cudnn_frontend.h"
  if [[ -f "$header" && "$(cat "$frontend_folder/version" 2> /dev/null)" == "$frontend_version" ]]; then
    say "cudnn-frontend $frontend_version is there"
    return
  fi
  work=$(mktemp -d)
  say "fetching the headers of cudnn-frontend $frontend_version"
  if ! python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 \
    --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 -d "$work" \
    "nvidia-cudnn-frontend==$frontend_version"; then
    rm -rf "$work"
    say "pip could not fetch nvidia-cudnn-frontend==$frontend_version (Debian: python3-pip)"
    exit 1
  fi
  if ! sha256sum --quiet --check <<< "$frontend_sha256  $(echo "$work"/*.whl)"; then
    rm -rf "$work"
    say "the wheel of cudnn-frontend $frontend_version has another checksum: not used"
    exit 1
  fi
  rm -rf "$frontend_folder"
  mkdir -p "$frontend_folder"
  python3 - "$work"/*.whl "$frontend_folder" << 'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = [n for n in wheel.namelist() if n.startswith("include/") or "/licenses/" in n]
    wheel.extractall(sys.argv[2], names)
PYTHON
  echo "$frontend_version" > "$frontend_folder/version"
  rm -rf "$work"
}

check_only=0
cuda=0
for argument in "$@"; do
  case "$argument" in
    --check) check_only=1 ;;
    --cuda) cuda=1 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) say "unknown option: $argument (try --help)"; exit 2 ;;
  esac
done

if ((cuda && !check_only)); then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  install_frontend
fi

id="" version="" name="this system"
if [[ -r /etc/os-release ]]; then
  # shellcheck disable=SC1091
  { read -r id; read -r version; read -r name; } < <(
    . /etc/os-release && printf '%s\n%s\n%s\n' "${ID:-}" "${VERSION_ID:-}" "${PRETTY_NAME:-}")
fi
case "$id $version" in
  "debian 12") ;;
  # Same package names; all of them are in its component `universe`, which must be enabled.
  "ubuntu 24.04") ;;
  *)
    if ! command -v apt-get > /dev/null; then
      say "$name is not Debian or Ubuntu. Install what these packages stand for, then set" \
        "KVTIER_SKIP_DEPS=1: ${packages[*]}"
      exit 1
    fi
    say "warning: $name is not Debian 12 or Ubuntu 24.04; versions may not fit" ;;
esac

installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' 2> /dev/null |
  awk '$2 == "installed" { print $1 }')
missing=()
for package in "${packages[@]}"; do
  # Debian 12 has pkg-config as a name for pkgconf; either will do.
  if [[ "$package" == pkg-config ]] && command -v pkg-config > /dev/null; then continue; fi
  grep -qxF -- "$package" <<< "$installed" || missing+=("$package")
done

if [[ ${#missing[@]} -eq 0 ]]; then
  say "nothing is missing (${#packages[@]} packages)"
  exit 0
fi
say "missing: ${missing[*]}"
if ((check_only)); then exit 1; fi

run_as_root=()
if [[ $EUID -ne 0 ]]; then
  command -v sudo > /dev/null || { say "not root and no sudo: run this script as root"; exit 1; }
  run_as_root=(sudo)
fi
apt() {
  # DEBIAN_FRONTEND must pass through sudo, hence env.
  ${run_as_root[@]+"${run_as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get "$@"
}
say "running apt-get update and apt-get install (${#missing[@]} packages and what they need)"
apt update -q
if ! apt install -q -y --no-install-recommends "${missing[@]}"; then
  say "apt-get failed; on Ubuntu the component 'universe' must be enabled: add-apt-repository universe"
  exit 1
fi
say "done"
