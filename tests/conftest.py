"""Settings for all tests: what is printed, how hard Hypothesis tries."""

import os

from hypothesis import HealthCheck, settings

# No deadline per example: the first call of a kernel compiles it.
settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
