#!/bin/bash
# Images a second on one device.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run train --performance "$@"
