"""Damaged files of a run are named; none of them is a traceback."""

import pytest

from dermalyze.evaluation.saliency_check import EXPLANATIONS, read_explanations
from dermalyze.tracking import StoredRun
from dermalyze.workflows.finished_run import FinishedRun
from serving.errors import ArtifactError, DataError

DAMAGED = b"", b"{", b"null", b"3", b"\xff\xfe", b'[{"epoch": '


def run_in(folder):
    return FinishedRun(StoredRun(run_id="r", params={}, tags={}, status="FINISHED", folder=folder))


@pytest.mark.parametrize("damage", [*DAMAGED, b"{}", b"[1]", b'[{"train/loss": 1.0}]'])
def test_a_damaged_history_is_one_sentence(tmp_path, damage):
    (tmp_path / "training_history.json").write_bytes(damage)
    with pytest.raises(ArtifactError) as caught:
        _ = run_in(tmp_path).history
    assert str(caught.value) == (
        "training_history.json of the run is damaged: expected what the training wrote; restore it "
        "from a copy or train again"
    )


@pytest.mark.parametrize("damage", [*DAMAGED, b"[]"])
def test_a_damaged_audit_is_one_sentence(tmp_path, damage):
    (tmp_path / "audit.json").write_bytes(damage)
    with pytest.raises(ArtifactError) as caught:
        _ = run_in(tmp_path).audit
    assert str(caught.value) == (
        "audit.json of the run is damaged: expected what the training wrote; restore it from a "
        "copy or train again"
    )


HEADER = (
    b"image_id,lesion_id,mass,mass_uniform,mass_center,pointing,pointing_uniform,pointing_center\n"
)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (b"", "is not what `dermalyze evaluate` wrote; remove it"),
        (b"\xff\xfe", "is not what `dermalyze evaluate` wrote; remove it"),
        (HEADER + b"a,b,c,d,e,f,g,h\n", "is not what `dermalyze evaluate` wrote; remove it"),
        (HEADER.replace(b",mass,", b",") + b"a,b,1,1,1,1,1\n", "lacks the columns mass; remove it"),
    ],
)
def test_a_damaged_table_of_maps_is_one_sentence(tmp_path, damage, why):
    (tmp_path / EXPLANATIONS).write_bytes(damage)
    with pytest.raises(DataError) as caught:
        read_explanations(tmp_path)
    assert str(caught.value) == f"{tmp_path / EXPLANATIONS} {why}"
