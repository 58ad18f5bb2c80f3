"""Files from before a model carried its taxonomy load as HAM10000's and answer as they did.

tiny-v1.onnx, tiny-v2.onnx and old-answers.json in tests/support/old_files were written with the
program of then.  The weights of tiny-v2.onnx are whole 32nds, and the images below make
every product and sum exact, so that the logits are the same bits on every CPU.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_model import TINY_ONNX

from serving.errors import ArtifactError
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import Metadata
from serving.predictor import Predictor
from serving.spec import FORMAT_VERSION, ModelSpec

DATA = TINY_ONNX.parent
ANSWERS = json.loads((DATA / "old-answers.json").read_text(encoding="utf-8"))
SPEC_2 = (DATA / "spec-v2.json").read_text(encoding="utf-8")
FACTS = [
    None,
    Metadata(age=69, sex="male"),
    Metadata(localization="face"),
    Metadata(age=35, sex="female", localization="back"),
]


def images():
    """Four of one level in one channel of one pixel, then four of black and full levels."""
    rng = np.random.RandomState(5)  # its stream is frozen for ever, unlike default_rng's
    found = []
    for _ in range(4):
        image = np.zeros((6, 8, 3), np.uint8)
        image[rng.randint(6), rng.randint(8), rng.randint(3)] = rng.randint(1, 256)
        found.append(image)
    for share in (0.03, 0.2, 0.5, 0.9):
        found.append((255 * (rng.random_sample((6, 8, 3)) < share)).astype(np.uint8))
    return found


def assert_same(answer, recorded):
    """Compare exactly, but for what the CPU's kernels of exp, mean and convolution may round."""
    rounded = {"probabilities": 1e-13, "confidence": 1e-13, "scope_score": 1e-6, "saliency": 1e-5}
    assert answer.keys() == recorded.keys()
    for key, value in recorded.items():
        if key in rounded:
            flat = list(value.values()) if isinstance(value, dict) else value
            found = answer[key]
            found = list(found.values()) if isinstance(found, dict) else found
            np.testing.assert_allclose(found, flat, rtol=rounded[key], atol=0)
        else:
            assert answer[key] == value, key


def test_a_file_of_version_1_answers_as_it_did():
    predictor = Predictor(DATA / "tiny-v1.onnx")
    assert predictor.spec.taxonomy == HAM10000
    for image, recorded in zip(images(), ANSWERS["tiny-v1.onnx"], strict=False):
        assert_same(predictor.predict(image).to_dict(), recorded)


def test_a_file_of_version_2_answers_as_it_did():
    predictor = Predictor(DATA / "tiny-v2.onnx")
    assert predictor.spec.taxonomy == HAM10000
    decisions = set()
    for i, (image, recorded) in enumerate(zip(images(), ANSWERS["tiny-v2.onnx"], strict=True)):
        explained = predictor.explain(image, metadata=FACTS[i % 4])
        answer = {**explained.prediction.to_dict(), "saliency": explained.saliency.tolist()}
        assert_same(answer, recorded)
        decisions.add(answer["decision"])
    assert decisions == {"answer", "uncertain", "out_of_scope"}


def test_a_spec_of_version_2_keeps_the_fields_of_its_metadata_and_its_words():
    values = json.loads(SPEC_2)
    values["class_descriptions"][5] = "A mole"
    values["data_license"] = "CC0"
    spec = ModelSpec.from_json(json.dumps(values))
    assert spec.format_version == FORMAT_VERSION == 3
    assert spec.taxonomy == replace(
        HAM10000, descriptions=tuple(values["class_descriptions"]), license="CC0"
    )
    assert spec.metadata.width == 2 + 2 + 14
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_an_old_spec_of_other_classes_knows_nothing_of_malignancy():
    values = json.loads(SPEC_2) | {"class_names": ["mel", "nv"], "class_descriptions": ["a", "b"]}
    taxonomy = ModelSpec.from_json(json.dumps(values)).taxonomy
    assert (taxonomy.names, taxonomy.malignant, taxonomy.title) == (("mel", "nv"), (), "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"thresholds": 3},
            "the model's spec has thresholds 3, expected an object; export the model again",
        ),
        (
            {"class_names": ["mel"]},
            "the model's spec cannot be used: taxonomy.names must have two or more names, none of "
            "them empty; export the model again",
        ),
        (
            {"taxonomy": HAM10000.to_dict()},
            "the model's spec has unknown keys ['taxonomy']; export the model again",
        ),
    ],
)
def test_what_is_wrong_in_a_spec_of_version_2_is_named(change, message):
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_json(json.dumps(json.loads(SPEC_2) | change))
    assert str(caught.value) == message


def test_an_old_checkpoint_with_metadata_keeps_its_14_sites(tmp_path):
    import torch

    from dermalyze.config.schema import ModelConfig
    from dermalyze.models.checkpoint import load_member, save_checkpoint
    from dermalyze.models.classifier import build_classifier

    old = ModelSpec.from_json(SPEC_2)
    config = ModelConfig(name="test_efficientnet", pretrained=False, use_metadata=True)
    network, _ = build_classifier(config, 32, 7, old.metadata)
    path = tmp_path / "old.pt"
    save_checkpoint(path, network.state_dict(), config, old)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"spec": SPEC_2}, path)  # the text that the program of then wrote
    member, spec = load_member(path)
    assert spec == replace(old, saliency="grad_cam")
    assert member.classifier.head.num_metadata == 18
    for one, other in zip(network.parameters(), member.classifier.parameters(), strict=True):
        assert torch.equal(one, other)
