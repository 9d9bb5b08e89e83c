#!/bin/bash
# mAP of a checkpoint (--pth_path) on one device.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
run test "$@"
