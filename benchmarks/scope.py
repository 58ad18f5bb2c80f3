"""Which score tells images that are no dermoscopic photographs of lesions, and how well?

Scores are fitted on a run's validation images, their thresholds set to 5 % false alarms there by
fits that had not seen the image, and then shown corrupted test images, pictures that are no skin,
and clinical views.  `shipped` is what the model file answers, photograph checks included.  Needs
scikit-image for its sample images.

    python -m benchmarks.scope RUN_ID DATA_DIR
"""

import argparse

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

from benchmarks import foreign
from benchmarks.corruptions import CORRUPTIONS
from benchmarks.report import Figure, publish
from benchmarks.trained import Trained, trained
from dermalyze.evaluation.bootstrap import Basis, interval_of, lesion_weights
from dermalyze.evaluation.scope import (
    cross_fitted,
    fit_max_score,
    fit_quality,
    fit_scope,
    lesion_shares,
    problems_of,
)
from dermalyze.models.classifier import to_images
from serving.quality import Measures, measure

NUM_IMAGES = 150  # of each kind and strength
STRENGTHS = (1, 2, 3, 4, 5)


def features_of(run: Trained, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return early and final features, logits, and what is measured of the photograph."""
    parts: dict[str, list[np.ndarray]] = {}
    classifier = run.member.classifier.eval()
    with torch.inference_mode():
        for start in range(0, len(pixels), 64):
            some = np.ascontiguousarray(pixels[start : start + 64])
            final, early = classifier.backbone.with_early(to_images(torch.from_numpy(some)))
            found = {
                "early": early,
                "final": final.mean((2, 3)),
                "logits": classifier.head(final),
            }
            measured = measure(some)
            for name, values in (
                *((name, values.numpy()) for name, values in found.items()),
                *((name, getattr(measured, name)) for name in vars(measured)),
            ):
                parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def energy(features):
    """Liu et al., "Energy-based out-of-distribution detection" (2020)."""
    return -logsumexp(features["logits"].astype(np.float64), axis=1)


def confidence(features):
    """Hendrycks & Gimpel, "A baseline for detecting misclassified examples" (2017)."""
    return -softmax(features["logits"].astype(np.float64), axis=1).max(axis=1)


def distances(name):
    """Return a function that fits a distance in reduced features and scores others with it."""

    def prepared(features, lesions):
        fit = fit_scope(features[name], lesions)
        return cross_fitted(features[name], lesions), lambda other: fit.scores(other[name])

    return prepared


def nearest(features, lesions):
    """Fit the distance to the tenth nearest validation image in reduced final features."""
    fit = fit_scope(features["final"], lesions)

    def reduced(values):
        return (values["final"] - fit.mean) @ fit.projection

    known = reduced(features)

    def score(other, rank=10):
        gaps = [np.sort(((row - known) ** 2).sum(axis=1))[rank - 1] for row in reduced(other)]
        return np.array(gaps)

    return score(features, rank=11), score  # an image is its own first neighbor


SCORES = {
    "confidence": lambda features, lesions: (confidence(features), confidence),
    "energy": lambda features, lesions: (energy(features), energy),
    "distance, last features": distances("final"),
    "neighbors, last features": nearest,
    "distance, early features": distances("early"),
}


def pictures(run: Trained) -> dict[str, np.ndarray]:
    """Make what is not in scope, by kind."""
    rng = np.random.default_rng(0)
    side = run.spec.input_size[0]
    test = run.prepared.store.batch(rng.permutation(run.splits.test)[:NUM_IMAGES])
    made = {
        f"{name} {strength}": np.stack([corrupt(image, strength, rng) for image in test])
        for name, corrupt in CORRUPTIONS.items()
        for strength in STRENGTHS
    }
    for name, draw in (
        ("sample pictures", foreign.sample_images),
        ("text", foreign.text_pages),
        ("screenshots", foreign.screenshots),
        ("noise", foreign.noise),
    ):
        made[name] = draw(NUM_IMAGES, side, rng)
    made["clinical views"] = foreign.clinical_views(test, rng)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_id")
    parser.add_argument("data_dir")
    arguments = parser.parse_args()
    with trained(arguments.run_id, arguments.data_dir) as run:
        store = run.prepared.store
        validation = features_of(run, store.batch(run.splits.val))
        test = features_of(run, store.batch(run.splits.test))
        others = {name: features_of(run, pixels) for name, pixels in pictures(run).items()}
        lesions = {"val": run.validation.lesions, "test": run.test.lesions}
        side = min(run.spec.input_size)
    none = np.zeros(len(lesions["val"]), bool)
    shares = lesion_shares(lesions["test"])
    drawn = lesion_weights(lesions["test"], 2000, 0) * shares
    rows, false_alarms = {}, {}

    def alarms(name, beyond):
        """Note the false alarm rate of (N,) alarms on test, with its interval."""
        rates = drawn @ beyond / drawn.sum(axis=1)
        basis = Basis(num_lesions=int(lesions["test"].max()) + 1)
        false_alarms[name] = interval_of(float(shares @ beyond), rates, basis)

    for name, prepare in SCORES.items():
        own, score = prepare(validation, lesions["val"])
        limit = fit_max_score(own, none, lesions["val"]).max_score
        in_scope = score(test)
        alarms(name, (in_scope > limit).astype(float))
        for kind, features in others.items():
            found = score(features)
            truth = np.r_[np.zeros(len(in_scope)), np.ones(len(found))]
            rows.setdefault(kind, {})[f"{name}: AUROC"] = roc_auc_score(
                truth, np.r_[in_scope, found]
            )
            rows[kind][f"{name}: detected"] = float((found > limit).mean())
    measures = [Measures(**{k: f[k] for k in ("sharpness", "brightness", "color")})
                for f in (validation, test)]  # fmt: skip
    quality = fit_quality(measures[0], lesions["val"], side)
    fit = fit_scope(validation["early"], lesions["val"])
    scope = fit_max_score(
        cross_fitted(validation["early"], lesions["val"]),
        problems_of(measures[0], quality),
        lesions["val"],
    )

    def shipped(features):
        measured = Measures(**{k: features[k] for k in ("sharpness", "brightness", "color")})
        beyond = fit.scores(features["early"]) > scope.max_score
        return (beyond | problems_of(measured, quality)).astype(float)

    alarms("shipped", shipped(test))
    for kind, features in others.items():
        rows[kind]["shipped: detected"] = float(shipped(features).mean())
    table = pd.DataFrame(rows).T
    with pd.option_context("display.width", 250, "display.max_columns", 20, "display.max_rows", 99):
        print(table.round(2))
        groups = table.groupby(
            table.index.str.replace(r"^.* (?=\d)", "all corruptions ", regex=True)
        )
        print(groups.mean().round(2))
    for name, interval in false_alarms.items():
        print(f"false alarms on test, {name}: {interval.estimate:.3f} ({interval.low:.3f} to "
              f"{interval.high:.3f})")  # fmt: skip
    publish(
        "scope",
        [
            Figure(
                what=f"detected: {kind}",
                ours=row["shipped: detected"],
                baseline=row["energy: detected"],
                unit="fraction",
                against="energy",
                ratio=row["shipped: detected"] / max(row["energy: detected"], 1e-3),
                goal="",
            )
            for kind, row in rows.items()
        ],
        table=rows,
        false_alarms={name: vars(interval) for name, interval in false_alarms.items()},
        num_images=NUM_IMAGES,
    )


if __name__ == "__main__":
    main()
