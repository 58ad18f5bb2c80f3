"""The tiny model with all that a model can have: limits, scope, map, metadata."""

from dataclasses import replace

import numpy as np
from tiny_model import SPEC, weights_and_bias

from serving.checksum import DIGEST_KEY, NO_DIGEST, seal
from serving.metadata import MetadataFields
from serving.photo_quality import QualityLimits
from serving.spec import SPEC_KEY
from serving.uncertainty import Abstention, PredictionSets, Referral, Scope

FIELDS = MetadataFields(
    age_mean=52.0, age_std=17.0, sexes=("female", "male"), localizations=("back", "face")
)
RICH = replace(
    SPEC,
    run_id="0123456789abcdef",
    calibrated_on="the validation split: 100 images of 90 lesions",
    prediction_sets=PredictionSets(
        levels=(0.8, 0.9, 0.95),
        min_probs=tuple((0.3, low, low / 2) for low in (0.15, 0.05, 0.15, 0.0, 0.1, 0.15, 0.2)),
        num_lesions=(40, 50, 60, 3, 70, 80, 30),
    ),
    abstention=Abstention(risk=0.1, min_confidence=0.5, coverage=0.8, num_lesions=300),
    scope=Scope(kind="distance", max_score=0.8, false_alarm_rate=0.05, num_lesions=300),
    referral=Referral(
        levels=(0.8, 0.9, 0.95),
        min_probs=(0.5, 0.35, 0.2),
        specificities=(0.925, 0.7, 0.4),
        confidence=0.95,
        num_malignant=60,
        num_benign=200,
    ),
    quality=QualityLimits(
        min_side=4, min_sharpness=0.5, min_brightness=10, max_brightness=245, min_color=2
    ),
    metadata=FIELDS,
    saliency="grad_cam",
)


def rich_of(taxonomy):
    """Return the spec of such a model of other classes; each third one has too few lesions."""
    low = [(0.0, 0.02, 0.05)[i % 3] for i in range(len(taxonomy))]
    sets = PredictionSets(
        levels=(0.8, 0.9, 0.95),
        min_probs=tuple((2 * value, value, value / 2) for value in low),
        num_lesions=tuple(50 if value else 3 for value in low),
    )
    referral = RICH.referral if taxonomy.malignant else None
    return replace(RICH, taxonomy=taxonomy, prediction_sets=sets, referral=referral)


def rich_bytes(spec=RICH):
    """Return a file: logits as the tiny model's plus metadata's, the mean level as scope score.

    Its map has 2 x 2 places: colors averaged over a quarter of the image, mixed for each class.
    """
    from onnx import TensorProto, helper, numpy_helper

    num_classes = len(spec.taxonomy)
    weights, bias = weights_and_bias()
    weights, bias = np.resize(weights, (len(weights), num_classes)), np.resize(bias, num_classes)
    rng = np.random.RandomState(1)
    constants = {
        "weights": weights,
        "bias": bias,
        "white": np.float32(255),
        "known": rng.standard_normal((spec.metadata.width, num_classes)).astype(np.float32),
        "mix": rng.standard_normal((num_classes, 3, 1, 1)).astype(np.float32),
        "axes": np.array([1, 2, 3], np.int64),
    }
    nodes = [
        ("Cast", ["image"], "numbers", {"to": TensorProto.FLOAT}),
        ("Div", ["numbers", "white"], "scaled", {}),
        ("Flatten", ["scaled"], "rows", {"axis": 1}),
        ("MatMul", ["rows", "weights"], "product", {}),
        ("Add", ["product", "bias"], "plain", {}),
        ("MatMul", ["metadata", "known"], "added", {}),
        ("Add", ["plain", "added"], "logits", {}),
        ("ReduceMean", ["scaled", "axes"], "scope_score", {"keepdims": 0}),
        ("Transpose", ["scaled"], "planes", {"perm": [0, 3, 1, 2]}),
        ("AveragePool", ["planes"], "quarters", {"kernel_shape": [3, 4], "strides": [3, 4]}),
        ("Conv", ["quarters", "mix"], "mixed", {}),
        ("Relu", ["mixed"], "saliency", {}),
    ]
    height, width = spec.input_size
    shapes = {
        "logits": ["batch", num_classes],
        "scope_score": ["batch"],
        "saliency": ["batch", num_classes, height // 3, width // 4],
    }
    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **options) for kind, ins, out, options in nodes],
        "rich",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, width, 3]),
            helper.make_tensor_value_info(
                "metadata", TensorProto.FLOAT, ["batch", spec.metadata.width]
            ),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {SPEC_KEY: spec.to_json(), DIGEST_KEY: NO_DIGEST})
    return seal(model.SerializeToString(deterministic=True))
