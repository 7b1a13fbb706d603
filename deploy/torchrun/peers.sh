#!/bin/sh
# On each computer: so many peers of one run, by a launcher that you may have anyway.
#
#   MASTER=HOST:48148 PROCESSES=4 deploy/torchrun/peers.sh --token-file token --config deploy/run.toml
#
# torchrun only starts them: peers find each other through the master. It ends all of one computer when one fails, and
# starts them again; those of other computers go on.
set -eu
exec torchrun --standalone --nproc-per-node "$PROCESSES" --max-restarts "${RESTARTS:-100}" --no-python \
    atoll join "$MASTER" "$@"
