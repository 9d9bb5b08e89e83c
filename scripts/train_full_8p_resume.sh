#!/bin/bash
# The same, which goes on from the newest checkpoint: now if there is one, and after a crash.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run train --devices=8 --resume --max-restarts=3 "$@"
