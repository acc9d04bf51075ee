#!/bin/bash
# One host of the job train-llama-1b-fa0d52: `bash run.sh SLICE`, in the home directory.
# Its own output goes to run.log beside it; the job's logs and records to /mnt/disk/llama/launch/train-llama-1b-fa0d52
set -uo pipefail
cd || exit 1

# The job's processes hold the lock too: while one lives, a second start does nothing.
exec 9> run.lock
flock --nonblock 9 || { echo "runs already"; exit 0; }

worker=${HOSTNAME##*-w-}  # t1v-n-0a1b2c3d-w-5
[[ $worker =~ ^[0-9]+$ ]] || worker=${TPU_WORKER_ID:-0}
export LM_LAUNCH_HOST=$1-$worker
export WANDB_MODE=online

gcloud auth print-access-token | sudo docker login --username=oauth2accesstoken --password-stdin https://europe-docker.pkg.dev

going=
trap 'going=yes' TERM  # the worker was told too: bash waits for it first
while :; do
  code=0
  sudo docker rm --force lm > /dev/null 2>&1; sudo docker run --rm --name=lm --net=host --ipc=host --privileged --volume=/mnt/disk/llama:/mnt/disk/llama --env=WANDB_MODE=online --env="LM_LAUNCH_HOST=$LM_LAUNCH_HOST" europe-docker.pkg.dev/a-project/lm/lm:1 python -m lm launch worker /mnt/disk/llama/launch/train-llama-1b-fa0d52 || code=$?
  echo "$(date -u +%FT%TZ) host $LM_LAUNCH_HOST: exit $code"
  if [ "$code" -ne 42 ] && [ "$code" -lt 128 ]; then exit "$code"; fi
  if [ "$going" ]; then exit 42; fi
  sleep 10
done
