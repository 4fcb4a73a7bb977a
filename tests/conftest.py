"""Settings for all tests: how hard Hypothesis tries, and which tests compare with other libraries."""

import functools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# No deadline per example: the first call of a kernel compiles it.
settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
# For tests/mutation.py: whether a test fails, not how little it takes.
settings.register_profile("mutation", deadline=None, max_examples=20, derandomize=True, database=None,
                          phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@functools.cache
def _compares_with_a_peer(path: Path) -> bool:
    return "importorskip" in path.read_text()


def pytest_collection_modifyitems(items):
    """`pytest -m oracle` runs the files in which something is compared with another library."""
    for item in items:
        if _compares_with_a_peer(item.path):
            item.add_marker(pytest.mark.oracle)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The text that the small runs of `small_runs` train on, in a file."""
    from small_runs import TEXT  # brings all of train.py along, which few tests need

    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT)
    return path
