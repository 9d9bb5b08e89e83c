"""`python -m yolox_plugin.test`: see `yolox_plugin.run.evaluate`."""

import sys

from .hosts import require

require("mmdet2", "python -m yolox_plugin.test")

from .run.evaluate import main  # noqa: E402  reads MMDetection 2's configs

if __name__ == "__main__":
    sys.exit(main())
