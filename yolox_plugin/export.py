"""`python -m yolox_plugin.export`: see `yolox_plugin.run.export`."""

import sys

from .run.export import main

if __name__ == "__main__":
    sys.exit(main())
