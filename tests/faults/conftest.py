"""How many examples: few by default, all of them by `--hypothesis-profile=faults`."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside it

COMMON = {"database": None, "deadline": None, "derandomize": True, "print_blob": True,
          "suppress_health_check": list(HealthCheck)}  # fmt: skip
settings.register_profile("few", max_examples=8, **COMMON)
settings.register_profile("faults", max_examples=480, **COMMON)
settings.load_profile("few")
