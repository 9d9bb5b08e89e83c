"""`python -m yolox_plugin.train`: see `yolox_plugin.run.train`."""

import sys

from .run.train import main

if __name__ == "__main__":
    sys.exit(main())
