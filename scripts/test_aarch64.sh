#!/bin/bash
# Runs the operator tests on aarch64, on a machine that need not be one: with Debian's Python for arm64 and wheels for
# aarch64 in build/aarch64/root, under qemu's emulation. What is there is used again. Emulation proves results, not speed.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD/build/aarch64
root=$here/root
packages=$root/usr/lib/python3/dist-packages
python=$root/usr/bin/emulated-python
say() { echo "[aarch64, $SECONDS s] $*"; }

command -v apt-get >/dev/null || { echo "Debian's apt-get is needed, for Python for arm64."; exit 1; }
missing=()
command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static)
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "Missing, install them first: sudo apt-get install ${missing[*]}"; exit 1; }
  say "installing ${missing[*]} ..."
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null
fi

# torch 2.10.0 is the newest whose wheel for aarch64 goes without CUDA. Without its requirements: pip would judge those
# by the machine that it runs on.
torch=2.10.0
mapfile -t others < <(
  printf '%s\n' filelock fsspec jinja2 networkx sympy typing-extensions
  grep -E '^(numpy|opencv-python-headless|pytest|pytest-xdist|hypothesis|setuptools|pybind11)\b' requirements.txt)
wanted="torch==$torch ${others[*]}"
if [ "$(cat "$here/ready" 2>/dev/null)" = "$wanted" ]; then
  say "Python, torch $torch and libraries for aarch64: already there"
else
  say "Python for arm64, from Debian ..."
  rm -rf "$here"
  mkdir -p "$here"/apt/{state/lists,cache/archives}/partial "$root"/usr/{lib,include}
  # An apt of its own that knows arm64 alone: it needs no root, and changes nothing on this machine.
  touch "$here/apt/status"
  apt=(apt-get -qq -o "Dir::State=$here/apt/state" -o "Dir::State::status=$here/apt/status" -o "Dir::Cache=$here/apt/cache"
    -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "APT::Sandbox::User=$(id -un)")
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends --download-only python3 libgomp1 libstdc++6
  for archive in "$here"/apt/cache/archives/*.deb; do dpkg-deb -x "$archive" "$root"; done
  [ -e "$root/lib" ] || ln -s usr/lib "$root/lib"  # newer releases have that link in a package of its own
  version=$(readlink "$root/usr/bin/python3")
  (cd "$here/apt" && "${apt[@]}" download "lib$version-dev" && dpkg-deb -x lib"$version"-dev*.deb headers)
  cp -r "$here/apt/headers/usr/include/$version" "$root/usr/include"
  cp "$here/apt/headers/usr/include/aarch64-linux-gnu/$version/pyconfig.h" "$root/usr/include/$version"

  say "torch $torch and libraries for aarch64, from pip ..."
  "${PYTHON:-python3}" -m venv "$here/tools"
  pip=("$here/tools/bin/python" -m pip --disable-pip-version-check -qq install)
  "${pip[@]}" $(grep -E '^(cmake|ninja)\b' requirements.txt)
  pip+=(--no-compile --target "$packages" --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64
    --python-version "${version#python}" --only-binary=:all:)
  "${pip[@]}" --no-deps "torch==$torch"
  "${pip[@]}" "${others[@]}"
  rm -rf "$here/apt"
  echo "$wanted" >"$here/ready"
fi

# An interpreter by itself, so that what Python starts of Python is emulated, too. As the processor that is nearest to the
# Kunpeng 920 of Ascend hosts.
cat >"$python" <<END
#!/bin/sh
export QEMU_CPU=\${QEMU_CPU:-neoverse-n1}
exec qemu-aarch64-static -0 "$python" -L "$root" "$root/usr/bin/python3" "\$@"
END
chmod +x "$python"

say "cross-compiling the operators ..."
build() {
  PATH="$here/tools/bin:$PATH" CMAKE_TOOLCHAIN_FILE="$PWD/scripts/aarch64.cmake" MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    "$python" setup.py --quiet build_ext --build-lib "$packages"
}
build >"$here/build.log" 2>&1 || { tail -n 20 "$here/build.log"; exit 1; }
# Of the plugin only what knows no host: there is no MMDetection here.
rm -rf "$packages/yolox_plugin"
mkdir "$packages/yolox_plugin"
cp -r yolox_plugin/core "$packages/yolox_plugin/"
cp yolox_ops/*.py "$packages/yolox_ops/"

# The installed package, not the operators in this folder, which are for another processor.
export PYTHONSAFEPATH=1 OMP_NUM_THREADS=1
say "self-check ..."
"$python" -m yolox_ops

# What tests ask of the order of memory, in the instructions: the host's processor keeps a stricter order than aarch64,
# which emulation cannot relax.
say "instructions that order the cache of images ..."
stamps=$(aarch64-linux-gnu-objdump -d --no-show-raw-insn build/cmake-"$torch"*-aarch64/CMakeFiles/build_info.dir/csrc/stamps.cpp.o)
for instruction in 'ldar\s+x' 'stlr\s+x' '__aarch64_cas8_acq_rel'; do
  grep -qP "$instruction" <<<"$stamps" || { echo "stamps.cpp: no $instruction"; exit 1; }
done

say "operator tests, without the slow ones and those that need a compiler ..."
"$python" -m pytest -q tests/ops tests/core/test_cache.py -m "not compile and not slow" \
  -n auto --maxprocesses 4 --dist worksteal --durations=5 | tee "$here/tests.log"
bits="bits not compared: no .venv"
if [ -x .venv/bin/python ]; then
  say "the bits of $(uname -m) ..."
  "$python" tests/ops/digests.py >"$here/bits"
  YOLOX_OPS_CPU_CAPABILITY=default .venv/bin/python tests/ops/digests.py | cmp - "$here/bits"
  bits="the bits of $(uname -m)"
fi
say "passed: $(tail -n 1 "$here/tests.log"); $bits. Emulated, with torch $torch; no aarch64 machine has run it."
