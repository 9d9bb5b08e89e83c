"""`python -m yolox_plugin.predict`: see `yolox_plugin.run.predict`."""

import sys

from .run.predict import main

if __name__ == "__main__":
    sys.exit(main())
