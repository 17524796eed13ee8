"""Settings of all tests."""

import os

from hypothesis import settings

# On CI the same examples every time: a search that finds something new belongs to a person who can look into it.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("default", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")
