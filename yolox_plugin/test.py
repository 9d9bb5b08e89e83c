"""`python -m yolox_plugin.test`: see `yolox_plugin.run.evaluate`."""

import sys

from .run.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
