#!/usr/bin/env bash
# What needs an NVIDIA GPU, in under 9 minutes after installation: the kernels' tests on the real backend, training
# beside `lm plan` and nanoGPT, attention beside its peers. Results go under ${OUT:-runs/gpu_check}. The exit code is
# the number of parts that failed. Not yet run on hardware.
#   bash launch/gpu_check.sh
#   TORCH_PYTHON=path/to/python NANOGPT=path/to/nanoGPT bash launch/gpu_check.sh
# LM_PYTHON=python3 installs nothing and uses an interpreter that has what requirements.txt and the extras name.
# Torch (the peer) comes from TORCH_PYTHON, by default the same interpreter; without one its rows are left out.
set -euo pipefail
source "$(dirname "$0")/venv.sh"
if [ -z "${LM_PYTHON:-}" ]; then
  install "gpu,test"
  LM_PYTHON="$VENV/bin/python"
fi
OUT="$(mkdir -p "${OUT:-$root/runs/gpu_check}" && cd "${OUT:-$root/runs/gpu_check}" && pwd)"
cd "$root"
export PYTHONPATH="$root" PYTHONUNBUFFERED=1
unset JAX_PLATFORMS
torch="${TORCH_PYTHON:-$LM_PYTHON}"
failed=0

# part NAME SECONDS COMMAND…: runs a part for so long at most; what it prints goes to $OUT/NAME.txt too.
part() {
  local name="$1" seconds="$2" start=$SECONDS
  shift 2
  echo "== $name" >&2
  timeout "$seconds" "$@" 2> >(tee "$OUT/$name.err" >&2) | tee "$OUT/$name.txt" || failed=$((failed + 1))
  echo "== $name took $((SECONDS - start)) s" >&2
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv > "$OUT/device.txt" 2>&1 || true

# f32 references in f32: on a GPU XLA would take TF32. Left out are tests of a mesh, which need several devices, and of
# the CPU's ways of attention; cuDNN's is held against the reference by the benchmark below.
few="not mesh and (not test_flash_attention or (accelerator and (definition or leaks or half)))"
part tests 130 env JAX_PLATFORMS=cuda,cpu JAX_DEFAULT_MATMUL_PRECISION=highest XLA_PYTHON_CLIENT_PREALLOCATE=false \
  "$LM_PYTHON" -m pytest -p no:cacheprovider -m "not slow" -k "$few" \
  tests/kernels/test_linear.py tests/kernels/test_cross_entropy.py tests/kernels/test_experts.py \
  tests/kernels/test_flash_choice.py tests/kernels/test_flash_attention.py tests/kernels/test_float8.py \
  tests/train/test_step.py
part training 270 "$LM_PYTHON" -m experiments.benchmarks.gpu_training --rounds 3 --seconds 2 \
  --torch-python "$torch" ${NANOGPT:+--nanogpt "$NANOGPT"}
part attention 130 "$LM_PYTHON" -m experiments.benchmarks.attention --rounds 2 --seconds 0.05 \
  --torch-python "$torch" --case T2048 --case T8192
echo "== $failed parts failed; results in $OUT" >&2
exit "$failed"
