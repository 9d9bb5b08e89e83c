"""`python -m yolox_plugin.demo`: see `yolox_plugin.run.demo`."""

import sys

from .run.demo import main

if __name__ == "__main__":
    sys.exit(main())
