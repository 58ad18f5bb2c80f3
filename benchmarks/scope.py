"""Which score tells images that are no dermoscopic photographs of lesions, and how well?

Scores are fitted on a run's validation images, their thresholds set to 5 % false alarms there by
fits that had not seen the lesion, and then shown corrupted test images, pictures that are no skin,
and clinical views.  `shipped` is what the model file answers, photograph checks included; also said
is how often it rejects good photographs that were handled differently.

    python -m benchmarks.scope RUN_ID DATA_DIR [--seed N]
"""

import argparse

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

from benchmarks import foreign
from benchmarks.corruptions import HARMLESS
from benchmarks.report import Figure, publish
from benchmarks.trained import parse, trained
from dermalyze.data.corruptions import CORRUPTIONS, STRENGTHS
from dermalyze.evaluation.statistics.bootstrap import Basis, interval_of, lesion_weights
from dermalyze.evaluation.uncertainty.out_of_distribution import (
    cross_fitted,
    fit_max_score,
    fit_quality,
    fit_scope,
    lesion_folds,
    lesion_shares,
    problems_of,
)
from dermalyze.models.classifier import to_images
from dermalyze.workflows.finished_run import FinishedRun
from serving.photo_quality import Measures, measure
from serving.preprocess import decode_image, to_pixels

NUM_IMAGES = 150  # of each kind and strength
NUM_PRINCIPAL = 64  # of the space that the residual is the rest of
NEIGHBOR = 10
MEASURES = ("sharpness", "brightness", "color")


def features_of(run: FinishedRun, pixels: np.ndarray) -> dict[str, np.ndarray]:
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
            for name, values in found.items():
                parts.setdefault(name, []).append(values.double().numpy())
            measured = measure(some)
            for name in MEASURES:
                parts.setdefault(name, []).append(getattr(measured, name))
    return {name: np.concatenate(values) for name, values in parts.items()}


def confidence(known, targets, lesions):
    """Hendrycks & Gimpel, "A baseline for detecting misclassified examples" (2017)."""
    return lambda other: -softmax(other["logits"], axis=1).max(axis=1)


def energy(known, targets, lesions):
    """Liu et al., "Energy-based out-of-distribution detection" (2020)."""
    return lambda other: -logsumexp(other["logits"], axis=1)


def distance(name):
    """Lee et al. (2018), one Gaussian: what the project fits, to features of that name."""

    def fitted(known, targets, lesions):
        fit = fit_scope(known[name], lesions)
        return lambda other: fit.scores(other[name])

    return fitted


def class_distances(known, targets, lesions):
    """Lee et al. (2018): the classes' distances, with what they share of spread: (N, classes)."""
    fit = fit_scope(known["final"], lesions)
    space = (known["final"] - fit.mean) @ fit.projection
    means = np.stack([space[targets == target].mean(axis=0) for target in np.unique(targets)])
    within = space - means[np.unique(targets, return_inverse=True)[1]]
    precision = np.linalg.inv(within.T @ within / len(within) + 0.01 * np.eye(space.shape[1]))

    def distances(other):
        gaps = ((other["final"] - fit.mean) @ fit.projection)[:, None] - means
        return np.einsum("ncd,de,nce->nc", gaps, precision, gaps) / space.shape[1]

    return distances


def to_class_means(known, targets, lesions):
    """Lee et al. (2018), equation 2: the distance to the nearest class."""
    distances = class_distances(known, targets, lesions)
    return lambda other: distances(other).min(axis=1)


def relative(known, targets, lesions):
    """Ren et al., "A simple fix to Mahalanobis distance" (2021), equation 4."""
    distances = class_distances(known, targets, lesions)
    alone = distance("final")(known, targets, lesions)
    return lambda other: distances(other).min(axis=1) - alone(other)


def residual(known, targets, lesions):
    """Wang et al., "ViM: out-of-distribution with virtual-logit matching" (2022), section 4."""
    mean = known["final"].mean(axis=0)
    _, _, directions = np.linalg.svd(known["final"] - mean, full_matrices=False)
    principal = directions[:NUM_PRINCIPAL].T

    def rest(other):
        centered = other["final"] - mean
        return np.linalg.norm(centered - centered @ principal @ principal.T, axis=1)

    scale = known["logits"].max(axis=1).mean() / rest(known).mean()
    return lambda other: scale * rest(other) - logsumexp(other["logits"], axis=1)


def nearest(known, targets, lesions):
    """Sun et al., "Out-of-distribution detection with deep nearest neighbors" (2022)."""
    fit = fit_scope(known["final"], lesions)
    space = (known["final"] - fit.mean) @ fit.projection

    def score(other):
        reduced = (other["final"] - fit.mean) @ fit.projection
        gaps = (reduced**2).sum(1)[:, None] - 2 * reduced @ space.T + (space**2).sum(1)
        return np.sort(gaps, axis=1)[:, NEIGHBOR - 1]

    return score


SCORES = {
    "confidence": confidence,
    "energy": energy,
    "one Gaussian, last features": distance("final"),
    "class means, last features": to_class_means,
    "relative, last features": relative,
    "residual, last features": residual,
    "neighbors, last features": nearest,
    "one Gaussian, early features": distance("early"),
}


def held_out_scores(fit, known, targets, lesions):
    """Score each image by a fit that has not seen its lesion: (N,)."""
    scores, folds = np.empty(len(lesions)), lesion_folds(lesions)
    for fold in np.unique(folds):
        out = folds == fold
        _, rest = np.unique(lesions[~out], return_inverse=True)
        score = fit({name: values[~out] for name, values in known.items()}, targets[~out], rest)
        scores[out] = score({name: values[out] for name, values in known.items()})
    return scores


def pictures(run: FinishedRun, seed: int) -> dict[str, np.ndarray]:
    """Make what is not in scope, by kind."""
    rng = np.random.default_rng(seed)
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


def handled_differently(run: FinishedRun, seed: int) -> dict[str, np.ndarray]:
    """Send good photographs as other people's programs would: from their files, by what is done."""
    rows = np.random.default_rng(seed).permutation(run.splits.test)[: 2 * NUM_IMAGES]
    ids = run.prepared.manifest["image_id"].iloc[rows]
    images = [decode_image(run.prepared.read_image_bytes(name)) for name in ids]
    return {
        name: np.stack([to_pixels(change(image), run.spec) for image in images])
        for name, change in HARMLESS.items()
    }


def shipped_rule(validation, lesions, side):
    """Return what says which images a model file calls out of scope: bool (N,)."""

    def measures(features):
        return Measures(*(features[name] for name in MEASURES))

    quality = fit_quality(measures(validation), lesions, side)
    fit = fit_scope(validation["early"], lesions)
    scope = fit_max_score(
        cross_fitted(validation["early"], lesions),
        problems_of(measures(validation), quality),
        lesions,
    )
    return lambda features: (
        (fit.scores(features["early"]) > scope.max_score) | problems_of(measures(features), quality)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_id")
    parser.add_argument("data_dir")
    parser.add_argument("--seed", type=int, default=0, help="Of the images and their corruption.")
    arguments = parse(parser)
    with trained(arguments.run_id, arguments.data_dir) as run:
        validation = features_of(run, run.prepared.store.batch(run.splits.val))
        test = features_of(run, run.prepared.store.batch(run.splits.test))
        others = {
            name: features_of(run, pixels) for name, pixels in pictures(run, arguments.seed).items()
        }
        handled = {
            name: features_of(run, pixels)
            for name, pixels in handled_differently(run, arguments.seed).items()
        }
        val, on_test, side = (
            run.predictions.validation,
            run.predictions.scored,
            min(run.spec.input_size),
        )
    shares = lesion_shares(on_test.lesions)
    drawn = lesion_weights(on_test.lesions, 2000, 0) * shares
    basis = Basis(num_lesions=on_test.num_lesions)
    rules, rows, false_alarms = {}, {kind: {} for kind in others}, {}
    for name, fit in SCORES.items():
        own = held_out_scores(fit, validation, val.targets, val.lesions)
        limit = fit_max_score(own, np.zeros(len(own), bool), val.lesions).max_score
        score = fit(validation, val.targets, val.lesions)
        rules[name] = lambda features, score=score, limit=limit: score(features) > limit
        inside = score(test)
        for kind, features in others.items():
            found = score(features)
            truth = np.repeat([0, 1], [len(inside), len(found)])
            rows[kind][f"{name}: AUROC"] = roc_auc_score(truth, np.r_[inside, found])
    rules["shipped"] = shipped_rule(validation, val.lesions, side)
    for name, rule in rules.items():
        alarms = rule(test).astype(float)
        rates = drawn @ alarms / drawn.sum(axis=1)
        false_alarms[name] = interval_of(float(shares @ alarms), rates, basis)
        for kind, features in others.items():
            rows[kind][f"{name}: detected"] = float(rule(features).mean())
    harmless = {name: float(rules["shipped"](found).mean()) for name, found in handled.items()}
    print_tables(pd.DataFrame(rows).T, false_alarms, harmless)
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
        rejected_although_harmless=harmless,
        num_images=NUM_IMAGES,
        num_lesions={"validation": val.num_lesions, "test": on_test.num_lesions},
        seed=arguments.seed,
    )


def print_tables(table, false_alarms, harmless) -> None:
    """Print every kind, and the mean of all corruptions at each strength, as markdown."""
    strength = table.index.str.extract(r" (\d)$")[0].fillna("").to_numpy()
    corrupted = table[strength != ""].groupby("strength " + strength[strength != ""]).mean()
    whole = pd.concat([corrupted, table])
    for what in ("AUROC", "detected"):
        part = whole[[name for name in whole if name.endswith(what)]].round(2)
        print(f"\n| {what} | " + " | ".join(name.split(":")[0] for name in part) + " |")
        print("|---" * (len(part.columns) + 1) + "|")
        for kind, row in part.iterrows():
            print(f"| {kind} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    print("\nfalse alarms on test")
    for name, interval in false_alarms.items():
        print(f"{name}: {interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})")
    print(f"\n{2 * NUM_IMAGES} good photographs, share rejected by what is shipped")
    for name, share in harmless.items():
        print(f"{name}: {share:.3f}")


if __name__ == "__main__":
    main()
