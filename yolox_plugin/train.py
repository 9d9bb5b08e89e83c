"""`python -m yolox_plugin.train`: see `yolox_plugin.run.train`."""

import sys

from .hosts import require

require("mmdet2", "python -m yolox_plugin.train")

from .run.train import main  # noqa: E402  reads MMDetection 2's configs

if __name__ == "__main__":
    sys.exit(main())
