"""PyTorch -> ONNX: one file, with the spec, without paths, only if it answers as PyTorch does."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_network import TINY_SPEC, spread, tiny_network
from torch import nn

from dermalyze.config.schema import ModelConfig
from dermalyze.export.onnx import export_onnx
from dermalyze.models.classifier import build_classifier
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.heads import build_head
from dermalyze.models.out_of_distribution import ScopeScore
from dermalyze.models.torch_predictor import SkinLesionPredictor
from serving import Predictor
from serving.checksum import DIGEST_KEY
from serving.errors import ArtifactError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import MetadataFields
from serving.spec import SPEC_KEY, ModelSpec
from serving.uncertainty import Scope

FIELDS = MetadataFields(
    age_mean=52.0, age_std=17.0, sexes=("female", "male"), localizations=("back", "face", "foot")
)

pytestmark = pytest.mark.slow  # an export takes seconds


@pytest.fixture(scope="module", params=["simple", "acrnn"])
def exported(request, tmp_path_factory):
    """A network as a GPU run leaves it (channels last, in training mode), and its ONNX file."""
    network = tiny_network(head_type=request.param).train()
    network.to(memory_format=torch.channels_last)
    before = copy.deepcopy(network.state_dict())
    path = tmp_path_factory.mktemp("export") / "deep" / "model.onnx"
    report = export_onnx(
        ShippedNetwork([Member(network)]), TINY_SPEC, path, extra_images=[("mine", PNG)]
    )
    return network, before, path, report


def png():
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (5, 4), (200, 150, 140)).save(data, "PNG")
    return data.getvalue()


PNG = png()


def test_it_agrees_on_64_images_and_on_those_that_were_added(exported):
    report = exported[3]
    assert report.num_images >= 65
    assert report.max_difference <= 1e-4
    assert report.changed_classes == ()


def test_one_file_holds_everything(exported):
    path = exported[2]
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    assert Predictor(path).spec == TINY_SPEC
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata.keys() == {SPEC_KEY, DIGEST_KEY}
    assert metadata[SPEC_KEY] == TINY_SPEC.to_json()
    assert re.fullmatch("[0-9a-f]{64}", metadata[DIGEST_KEY])
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]


def test_no_local_path_and_no_source_code_is_in_the_file(exported):
    data = exported[2].read_bytes()
    repository = Path(__file__).parents[2]
    for text in (str(repository), str(Path.home()), repository.name + "/", ".py", "site-packages"):
        assert text.encode() not in data


def test_the_network_itself_is_not_changed(exported):
    network, before, _, _ = exported
    assert network.training
    after = network.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name])
        assert value.stride() == after[name].stride()


@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_any_number_of_images_goes_through_at_once(exported, num_images):
    network, _, path, _ = exported
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 16, 16, 3), np.uint8)
    expected = SkinLesionPredictor.of(
        ShippedNetwork([Member(copy.deepcopy(network))]), TINY_SPEC
    ).logits(pixels)
    # float32 sums in another order; the logits are below 20
    np.testing.assert_allclose(Predictor(path).logits(pixels), expected, atol=1e-5)


def test_the_same_network_gives_the_same_bytes_without_a_word(exported, tmp_path, capfd):
    again = tmp_path / "model.onnx"
    capfd.readouterr()
    export_onnx(ShippedNetwork([Member(exported[0])]), TINY_SPEC, again)
    assert again.read_bytes() == exported[2].read_bytes()
    assert capfd.readouterr() == ("", "")


class Deceiver(nn.Module):
    """Shows the exporter another network than it runs."""

    output_fmt = "NCHW"
    factor = 0.5

    def forward_features(self, images):
        features = images[:, [0, 1, 2, 0, 1, 2], ::4, ::4]
        return features * self.factor if torch.compiler.is_exporting() else features


class Nan(Deceiver):
    factor = float("nan")


def test_a_file_that_disagrees_is_not_written_and_the_old_one_stays(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(ArtifactError) as caught:
        export_onnx(ShippedNetwork([Member(tiny_network(features=Deceiver))]), TINY_SPEC, path)
    assert re.fullmatch(
        rf"{re.escape(str(path))} is not written: in image (jpeg|png) \S.* ONNX differs from "
        r"PyTorch by \d\.\de-\d\d in a probability, where 1e-04 is allowed, and of \d\d images "
        r"\d+ change their class; if the network was hardly trained, train it longer",
        str(caught.value),
    )
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the old one"


def test_a_file_that_answers_no_number_is_not_written(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        export_onnx(
            ShippedNetwork([Member(tiny_network(features=Nan))]), TINY_SPEC, tmp_path / "model.onnx"
        )
    assert str(caught.value) == (
        "the model returned values that are not finite numbers; train or export it again"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head_type", ["simple", "acrnn"])
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_every_size_with_every_head_agrees_with_pytorch(tmp_path, size, head_type):
    torch.manual_seed(0)
    config = ModelConfig(size=size, head_type=head_type, pretrained=False)
    spec = ModelSpec(taxonomy=HAM10000, input_size=(64, 64))
    network = spread(build_classifier(config, 64, 7)[0], spec)
    report = export_onnx(ShippedNetwork([Member(network)]), spec, tmp_path / "model.onnx")
    assert report.agrees
    assert report.num_images >= 64


SCOPE = Scope(kind="mahalanobis", max_score=2.0, false_alarm_rate=0.05, num_lesions=200)


def member_with_scope(seed, head_type, num_metadata):
    torch.manual_seed(seed)
    network = tiny_network(seed, head_type)
    network.head = build_head(head_type, 6, 7, 0.3, num_metadata)
    spread(network, TINY_SPEC)
    return Member(network, ScopeScore(torch.rand(6), torch.randn(6, 3))).eval()


@pytest.mark.parametrize(
    ("head_type", "num_networks", "num_views", "with_metadata"),
    [("simple", 1, 1, True), ("simple", 2, 8, True), ("acrnn", 2, 1, False)],
)
def test_all_that_a_network_answers_is_in_the_file_and_as_pytorch_has_it(
    tmp_path, head_type, num_networks, num_views, with_metadata
):
    fields = FIELDS if with_metadata else None
    width = fields.width if fields else 0
    members = [member_with_scope(seed, head_type, width) for seed in range(num_networks)]
    network = ShippedNetwork(members, num_views=num_views)
    spec = replace(
        TINY_SPEC,
        scope=SCOPE,
        metadata=fields,
        saliency="grad_cam" if head_type == "simple" else "attention_evidence",
        num_views=num_views,
        member_run_ids=("a", "b") if num_networks > 1 else (),
    )
    path = tmp_path / "model.onnx"
    report = export_onnx(network, spec, path)
    assert report.output_differences.keys() == {
        "scope_score",
        "saliency",
        *(["attention"] if head_type == "acrnn" else []),
        *(["member_logits"] if num_networks * num_views > 1 else []),
    }
    # Once more, on other images and with metadata of every kind.
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (7, 16, 16, 3), np.uint8)
    metadata = rng.standard_normal((7, width)).astype(np.float32) if fields else None
    names = ["logits", *report.output_differences]
    ours = SkinLesionPredictor.of(network, spec).run(pixels, names, metadata)
    theirs = Predictor(path).run(pixels, names, metadata)
    for name in names:
        np.testing.assert_allclose(theirs[name], ours[name], atol=1e-5 * np.abs(ours[name]).max())
    assert theirs["saliency"].shape[:2] == (7, 7)
    if fields:
        unknown = Predictor(path).run(pixels, ["logits"])["logits"]
        assert np.abs(unknown - theirs["logits"]).max() > 0.01


def test_a_map_that_differs_from_pytorch_is_found(tmp_path, monkeypatch):
    network = ShippedNetwork([member_with_scope(0, "simple", 0)])
    spec = replace(TINY_SPEC, scope=SCOPE, saliency="grad_cam")
    run = SkinLesionPredictor.run

    def another_map(self, pixels, names, metadata=None):
        outputs = run(self, pixels, names, metadata)
        return {k: v * 1.01 if k == "saliency" else v for k, v in outputs.items()}

    monkeypatch.setattr(SkinLesionPredictor, "run", another_map)
    with pytest.raises(ArtifactError) as caught:
        export_onnx(network, spec, tmp_path / "model.onnx")
    found = re.search(
        r"0 change their class, the saliency by (\S+) of its largest value; ", str(caught.value)
    )
    assert 1e-3 < float(found[1]) <= 0.01  # of the largest map but a few, a hundredth
    assert list(tmp_path.iterdir()) == []
