"""A disk that gets full: one sentence, nothing half written, and a run that can be resumed."""

import dataclasses

import pytest

from benchmarks.forked import commands
from benchmarks.full_disk import COMMANDS, RUN, disk, faults, make, resumed

pytestmark = pytest.mark.slow

# Bytes of room, of which each is too few; `python -m benchmarks.full_disk` has many more.
ROOMS = [
    ("demo-data zips", 0),
    ("demo-data folders", 600_000),
    ("prepare-data", 500_000),
    ("evaluate again", 100_000),
    ("report again", 100_000),
    ("plot-training", 0),
    ("export-onnx float16", 100_000),
    ("predict --explain", 300_000),
]


@pytest.fixture(scope="module")
def program():
    with commands() as program:
        yield program


@pytest.fixture(scope="module")
def place():
    with disk() as place:
        yield place


@pytest.fixture(scope="module")
def made(program, place, tmp_path_factory):
    return make(program, place, tmp_path_factory.mktemp("made") / "made", names=(RUN,))


@pytest.mark.parametrize(("name", "room"), ROOMS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    program, place, made, name, room, tmp_path
):
    if name.endswith(" again"):  # or what is fetched first would fill the disk
        place = dataclasses.replace(place, temporary=tmp_path)
    if not place.is_mounted:  # a bound for each file, that of standard error as well
        room = 8192
    done, found = faults(program, place, made, COMMANDS[name], room)
    assert found == []
    assert done.status == 1
    if place.is_mounted:  # else MLflow keeps to itself why it cannot copy a file
        assert "no space left" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("room", [5_000_000])
def test_a_training_on_a_full_disk_can_be_resumed_once_there_is_room(program, place, made, room):
    if not place.is_mounted:
        pytest.skip("a bound for each file stops the database, whose run cannot be resumed then")
    done, found = faults(program, place, made, COMMANDS["train"], room)
    assert found == []
    assert done.status == 1
    again = resumed(program, place, made)
    assert again.status == 0, again.stderr
