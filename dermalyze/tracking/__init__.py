"""Everything that MLflow needs to be told; but for `registry.py` nobody else imports it.

MLflow is imported when a name of this package is first used: a training with `--no-tracking` uses
none.  Nothing is sent anywhere but to the tracking store that the user names; MLflow's own
telemetry is switched off.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermalyze.tracking.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("dermalyze.tracking.api"), name)
