"""How many examples a fuzz test takes: few by default, many with `--hypothesis-profile=faults`, always the same."""

from hypothesis import HealthCheck, settings

COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("few", max_examples=8, **COMMON)
settings.register_profile("faults", max_examples=250, **COMMON)
# Random examples, other ones each time: a failure is printed with what repeats it.
settings.register_profile("search", max_examples=250, **COMMON | {"derandomize": False})
settings.load_profile("few")
