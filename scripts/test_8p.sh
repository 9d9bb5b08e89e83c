#!/bin/bash
# mAP of a checkpoint (--pth_path) on eight devices.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run test --devices=8 "$@"
