#!/bin/bash
# The whole recipe on one device.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run train "$@"
