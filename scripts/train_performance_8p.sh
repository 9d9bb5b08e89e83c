#!/bin/bash
# Images a second on eight devices.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run train --devices=8 --performance "$@"
