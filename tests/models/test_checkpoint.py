import pickle
from dataclasses import replace

import pytest
import torch

from dermalyze.config.schema import ModelConfig
from dermalyze.models.checkpoint import (
    load_checkpoint,
    load_member,
    save_checkpoint,
    start_from,
)
from dermalyze.models.classifier import build_classifier
from dermalyze.models.out_of_distribution import ScopeScore
from serving.errors import ArtifactError, ConfigError
from serving.ham10000_taxonomy import HAM10000
from serving.spec import ModelSpec
from serving.uncertainty import Scope

CONFIG = ModelConfig(name="test_efficientnet", pretrained=False)
SPEC = ModelSpec(taxonomy=HAM10000, input_size=(32, 32))


@pytest.fixture(scope="module")
def classifier():
    return build_classifier(CONFIG, 32, 7)[0]


def test_a_checkpoint_gives_back_the_same_network_and_spec(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    loaded, spec = load_member(path)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.classifier(images), classifier.eval()(images))
    assert spec == replace(SPEC, saliency="grad_cam")  # which any checkpoint can give
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_torch_opens_a_checkpoint_with_weights_only(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC, {"training": {"epoch": 3}})
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
        f"{path} is not a checkpoint of dermalyze, or is damaged; train or download it again"
    )
    assert capsys.readouterr().out == ""


def test_a_file_cut_short_is_explained(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArtifactError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path} is not a checkpoint of dermalyze, or is damaged; train or download it again"
    )


def test_one_flipped_bit_among_the_weights_is_seen(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path} is not a checkpoint of dermalyze, or is damaged; train or download it again"
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
        load_member(path)
    assert str(caught.value) == (
        f"the weights in {path} do not fit the network that it describes; train it again"
    )


def test_a_checkpoint_keeps_what_was_fitted_on_validation_images(tmp_path, classifier):
    scope = ScopeScore(torch.rand(6), torch.rand(6, 2))
    limits = Scope(kind="x", max_score=2.0, false_alarm_rate=0.05, num_lesions=30)
    spec = replace(SPEC, scope=limits, temperature=1.5)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, spec, {"scope": scope.state_dict()})
    member, found = load_member(path)
    assert found == replace(spec, saliency="grad_cam")
    early = torch.rand(3, 6)
    torch.testing.assert_close(member.scope(early), scope(early))


def test_a_checkpoint_that_lacks_the_scope_of_its_spec_is_refused(tmp_path, classifier):
    limits = Scope(kind="x", max_score=2.0, false_alarm_rate=0.05, num_lesions=30)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, replace(SPEC, scope=limits))
    with pytest.raises(ArtifactError, match="do not fit the network that it describes"):
        load_member(path)


@pytest.mark.parametrize("part", ["spec", "model", "weights", "training"])
@pytest.mark.parametrize("instead", [None, 3])
def test_a_checkpoint_without_one_of_its_parts_is_refused_by_name(
    tmp_path, classifier, part, instead
):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    content = torch.load(path, weights_only=True)
    if instead is None:
        del content[part]
    else:
        content[part] = instead
    torch.save(content, path)
    with pytest.raises(ArtifactError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path} lacks its part '{part}', which every checkpoint has; use another copy, or train "
        "again"
    )


def same_weights(one, other, part):
    return [torch.equal(a, b) for a, b in zip(
        getattr(one, part).state_dict().values(), getattr(other, part).state_dict().values(),
        strict=True,
    )]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (HAM10000.names, "backbone and head"),
        (HAM10000.names[::-1], "backbone; the head is new"),  # as many, in another order
        (("mel", "nv"), "backbone; the head is new"),
    ],
)
def test_a_trained_network_gives_its_head_only_to_the_same_classes(
    tmp_path, classifier, names, taken
):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    new = build_classifier(CONFIG, 32, len(names))[0]
    before = [value.clone() for value in new.head.state_dict().values()]
    assert start_from(new, load_checkpoint(path), CONFIG.timm_name, names) == taken
    assert all(same_weights(new, classifier, "backbone"))
    kept = [torch.equal(a, b) for a, b in zip(new.head.state_dict().values(), before, strict=True)]
    assert all(kept) == (taken != "backbone and head")
    if taken == "backbone and head":
        assert all(same_weights(new, classifier, "head"))


def test_a_trained_network_of_another_backbone_is_refused(tmp_path, classifier):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, classifier.state_dict(), CONFIG, SPEC)
    other = ModelConfig(name="test_resnet", pretrained=False)
    new = build_classifier(other, 32, 7)[0]
    with pytest.raises(ConfigError) as caught:
        start_from(new, load_checkpoint(path), "test_resnet", HAM10000.names)
    assert str(caught.value) == (
        "model.pretrained names a trained test_efficientnet, and model.name is test_resnet; "
        "leave model.name out, or name another file"
    )
