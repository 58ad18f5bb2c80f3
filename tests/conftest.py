"""What several tests share: a place of their own, no telemetry, the real data where it is."""

import os
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "1"

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture
def real_data() -> Path:
    folder = SHARED / "data" / "HAM10000"
    if not folder.is_dir():
        pytest.skip("the real HAM10000 is not beside the project, in ../shared/data/HAM10000")
    return folder
