import pickle

import pytest
import torch

from dermalyze.config import ModelConfig
from dermalyze.models.checkpoint import load_checkpoint, load_classifier, save_checkpoint
from dermalyze.models.classifier import build_classifier
from serving.errors import ArtifactError
from serving.spec import ModelSpec

CONFIG = ModelConfig(name="test_efficientnet", pretrained=False)
SPEC = ModelSpec(input_size=(32, 32))


@pytest.fixture(scope="module")
def classifier():
    return build_classifier(CONFIG, 32)[0]


def test_a_checkpoint_gives_back_the_same_network_and_spec(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    loaded, spec = load_classifier(path)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), classifier.eval()(images))
    assert spec == SPEC
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_torch_opens_a_checkpoint_with_weights_only(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC, {"epoch": 3})
    content = torch.load(path, weights_only=True)
    assert content["training"] == {"epoch": 3}


class Evil:
    def __reduce__(self):
        return (print, ("a pickle was read",))


def test_a_pickle_is_never_read(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ArtifactError):
        load_checkpoint(path)
    torch.save({"weights": Evil()}, path)
    with pytest.raises(ArtifactError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path} is no checkpoint of dermalyze, or it is damaged; train or download it again"
    )
    assert capsys.readouterr().out == ""


def test_a_file_cut_short_is_explained(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArtifactError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path} is no checkpoint of dermalyze, or it is damaged; train or download it again"
    )


def test_missing_foreign_and_newer_files_are_told_apart(tmp_path, classifier):
    missing, foreign, newer = (tmp_path / name for name in ("no.pt", "foreign.pt", "newer.pt"))
    torch.save({"state_dict": {}}, foreign)
    torch.save({"format": "dermalyze-checkpoint", "format_version": 99}, newer)
    expected = {
        missing: f"no checkpoint at {missing}; train one with `dermalyze train`",
        foreign: f"{foreign} was not written by `dermalyze train`; expected a checkpoint",
        newer: f"{newer} has checkpoint version 99, this program reads 1; update dermalyze",
    }
    for path, message in expected.items():
        with pytest.raises(ArtifactError) as caught:
            load_checkpoint(path)
        assert str(caught.value) == message


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weight": torch.zeros(1)}, CONFIG, SPEC)
    with pytest.raises(ArtifactError) as caught:
        load_classifier(path)
    assert str(caught.value) == (
        f"the weights in {path} do not fit the network that it describes; train it again"
    )
