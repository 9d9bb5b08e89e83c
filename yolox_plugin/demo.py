"""`python -m yolox_plugin.demo`: see `yolox_plugin.run.demo`."""

import sys

from .hosts import require

require("mmdet2", "python -m yolox_plugin.demo")

from .run.demo import main  # noqa: E402  reads MMDetection 2's configs

if __name__ == "__main__":
    sys.exit(main())
