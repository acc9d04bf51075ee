#!/bin/bash
# One host of the job train-llama-1b-bbbc1a: `bash run.sh SLICE`, in the home directory.
# Its own output goes to run.log beside it; the job's logs and records to gs://bucket/llama/launch/train-llama-1b-bbbc1a
set -uo pipefail
cd || exit 1

# The job's processes hold the lock too: while one lives, a second start does nothing.
exec 9> run.lock
flock --nonblock 9 || { echo "runs already"; exit 0; }

worker=${HOSTNAME##*-w-}  # t1v-n-0a1b2c3d-w-5
[[ $worker =~ ^[0-9]+$ ]] || worker=${TPU_WORKER_ID:-0}
export LM_LAUNCH_HOST=$1-$worker

code=$HOME/code-0123456789ab
if [ ! -d "$code" ]; then
  fresh=$(mktemp -d "$code".XXXXXX) && tar -xzf code.tar.gz -C "$fresh" || exit 1
  mv -T "$fresh" "$code" 2>/dev/null || rm -rf "$fresh"  # another was faster
fi
cd "$code" || exit 1
export PYTHONPATH=$code
install() {
  { python3 -m pip install --quiet --user uv || curl -LsSf https://astral.sh/uv/install.sh | sh; } &&
  ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ../venv &&
  ~/.local/bin/uv pip install --quiet --python ../venv/bin/python --editable '.[tpu,gcs]'
}
for attempt in 1 2 3; do  # a package index may be away for a moment
  [ -e .installed ] || { install && touch .installed; } || { echo "installing failed ($attempt of 3)"; sleep 20; }
done
[ -e .installed ] || exit 1

going=
trap 'going=yes' TERM  # the worker was told too: bash waits for it first
while :; do
  code=0
  ../venv/bin/python -m lm launch worker gs://bucket/llama/launch/train-llama-1b-bbbc1a || code=$?
  echo "$(date -u +%FT%TZ) host $LM_LAUNCH_HOST: exit $code"
  if [ "$code" -ne 42 ] && [ "$code" -lt 128 ]; then exit "$code"; fi
  if [ "$going" ]; then exit 42; fi
  sleep 10
done
