"""Everything that MLflow needs to be told; but for `registry.py` nobody else imports it.

Nothing is sent anywhere but to the tracking store that the user names; MLflow's own telemetry is
switched off.
"""

from dermalyze.tracking.delivery import MODEL_URI_TAG
from dermalyze.tracking.outbox import WORK
from dermalyze.tracking.runs import (
    TrackedRun,
    add_below,
    clear_finished,
    open_run,
    open_undelivered,
    reach_store,
    require_unfinished,
    under_way,
)
from dermalyze.tracking.store import (
    BoundedClient,
    StoreAwayError,
    call,
    first_line,
    is_calling,
    is_missing,
    limit_calls,
    quiet,
    use_store,
)
from dermalyze.tracking.stored_runs import (
    StoredRun,
    add_to_run,
    artifact_names,
    children_of,
    fetch,
    has_epochs,
    is_place_missing,
    local_artifacts,
    opened,
    project_arguments,
    require_run,
    status_of,
    stored_run,
    tags_of,
)

__all__ = [
    "MODEL_URI_TAG",
    "WORK",
    "BoundedClient",
    "StoreAwayError",
    "StoredRun",
    "TrackedRun",
    "add_below",
    "add_to_run",
    "artifact_names",
    "call",
    "children_of",
    "clear_finished",
    "fetch",
    "first_line",
    "has_epochs",
    "is_calling",
    "is_missing",
    "is_place_missing",
    "limit_calls",
    "local_artifacts",
    "open_run",
    "open_undelivered",
    "opened",
    "project_arguments",
    "quiet",
    "reach_store",
    "require_run",
    "require_unfinished",
    "status_of",
    "stored_run",
    "tags_of",
    "under_way",
    "use_store",
]
