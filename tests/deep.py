"""Whether this is the run before a release, which tries all that others try a part of."""

from __future__ import annotations

import os

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
