#!/bin/bash
# The whole recipe on eight devices.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run train --devices=8 "$@"
