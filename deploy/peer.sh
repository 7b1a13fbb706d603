#!/bin/sh
# peer.sh RUN_DIR HOST:PORT [flags of atoll join]
#
# One peer that may be started again at any time, by systemd, a container runtime or a batch job: it goes on from the
# newest checkpoint in RUN_DIR, if there is one, and a run that was finished there stays finished.
set -eu
run=$1
shift
mkdir -p "$run"
if [ -e "$run/finished" ]; then
    echo "the run in $run is finished; to train anew, give another folder or remove $run/finished and its checkpoints"
    exit 0
fi
for saved in "$run"/checkpoint/step-*.safetensors; do
    if [ -e "$saved" ]; then
        set -- "$@" --resume
        break
    fi
done

peer=
trap 'kill -TERM $peer 2>/dev/null || true' TERM INT # as process 1 of a container nobody else would pass it on
atoll join "$@" --run-dir "$run" &
peer=$!
code=0
wait "$peer" || code=$?
while kill -0 "$peer" 2>/dev/null; do # the signal ended our waiting, not yet the peer
    code=0
    wait "$peer" || code=$?
done
if [ "$code" -eq 0 ]; then
    touch "$run/finished"
fi
exit "$code"
