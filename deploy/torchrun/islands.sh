#!/bin/sh
# On each island (one computer, or several that share fast links):
#
#   MASTER=HOST:48148 PROCESSES=8 deploy/torchrun/islands.sh examples/fsdp.py
#
# FSDP inside the island by torchrun, atoll between the islands. An island that has lost a process can't go on: torchrun
# starts all of it again, and it gets its shards from the other islands.
set -eu
exec torchrun --standalone --nproc-per-node "$PROCESSES" --max-restarts "${RESTARTS:-100}" "$1" "$MASTER"
