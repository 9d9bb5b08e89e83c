"""`python -m yolox_plugin.look`: see `yolox_plugin.run.look`."""

import sys

from .run.look import main

if __name__ == "__main__":
    sys.exit(main())
