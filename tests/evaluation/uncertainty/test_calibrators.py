"""Calibrators and class shares: what was planted comes back, within the error of its simulation.

N images, C classes.  Labels are drawn from probabilities that are known, so the standard error of
the best possible estimate is known too: the inverse of the Fisher information.
"""

import inspect
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax
from simulated import HAM10000_SHARES, THREE, simulate

from dermalyze.config.schema import CALIBRATORS
from dermalyze.evaluation.metrics.calibration import calibration_errors
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.uncertainty.calibrators import (
    correct_priors,
    estimate_priors,
    fit_calibrator,
    map_loss,
    parse_prevalence,
    require_disjoint,
)
from serving.errors import ConfigError, DataError
from serving.ham10000_taxonomy import HAM10000
from serving.prediction import softmax
from serving.taxonomy import Taxonomy

STANDARD_ERRORS = 4  # a right estimate is further off once in 16,000 draws


def scored(logits, targets, class_names, *, first: int = 0, lesions=None) -> Scored:
    """Images with facts that mean nothing; each its own lesion unless told."""
    n = len(targets)
    rows = pd.DataFrame(
        {
            "image_id": [f"ISIC_{first + i:07d}" for i in range(n)],
            "label": np.asarray(class_names, dtype=object)[targets],
            "lesion_id": [f"HAM_{first + i:07d}" for i in range(n)] if lesions is None else lesions,
            **{"dx_type": "histo", "age": 50.0, "sex": "male", "localization": "back"},
        }
    )
    taxonomy = Taxonomy(names=tuple(class_names))
    return scored_of(predictions_table(rows, logits, taxonomy), taxonomy)


def draw(probs, rng):
    """Draw a class for each row of (N, C)."""
    return (rng.random((len(probs), 1)) > probs.cumsum(axis=1)).sum(axis=1)


def planted(transform, num_images: int, seed: int, class_names=HAM10000.names) -> Scored:
    """Draw logits, and labels from the softmax of what `transform` makes of them."""
    rng = np.random.default_rng(seed)
    logits = np.float32(rng.normal(size=(num_images, len(class_names))) * 3)
    targets = draw(softmax(transform(logits.astype(np.float64))), rng)
    return scored(logits, targets, class_names)


def covariances(probs):
    """diag(p) - p p' of each row: (N, C) -> (N, C, C)."""
    return probs[:, :, None] * (np.eye(probs.shape[1]) - probs[:, None, :])


def divergence(true_logits, found_logits) -> float:
    """Kullback-Leibler divergence of the found from the true probabilities, nats an image."""
    true, found = log_softmax(true_logits, axis=1), log_softmax(found_logits, axis=1)
    return float((np.exp(true) * (true - found)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_found(temperature):
    validation = planted(lambda logits: logits / temperature, 1500, seed=0)
    found = fit_calibrator("temperature", validation).parameters["temperature"]
    # The information on 1/T is the sum of the variances of the logits under the true
    # probabilities; an error of 1/T is T times as large, relative to 1/T.
    true = softmax(validation.logits, temperature)
    spread = np.einsum("ni,nij,nj->", validation.logits, covariances(true), validation.logits)
    standard_error = temperature / np.sqrt(spread)  # of log T
    assert standard_error < 0.05  # or the next line would say nothing
    assert abs(np.log(found / temperature)) < STANDARD_ERRORS * standard_error


def test_a_temperature_lowers_the_loss_and_changes_no_predicted_class():
    validation = planted(lambda logits: logits / 2, 1000, seed=1)
    calibrator = fit_calibrator("temperature", validation)
    fresh = planted(lambda logits: logits / 2, 5000, seed=2)
    calibrated = calibrator.apply(fresh.logits)
    before = calibration_errors(fresh.logits, fresh.targets)
    after = calibration_errors(calibrated, fresh.targets)
    assert (calibrated.argmax(axis=1) == fresh.predicted).all()
    assert after.nll < before.nll - 0.2
    assert after.ece < before.ece / 3


@pytest.mark.parametrize(("sign", "bound"), [(1, 1 / 20), (-1, 20)])
def test_a_temperature_stays_in_bounds_where_none_is_best(sign, bound):
    targets = np.arange(60) % 7
    validation = scored(sign * np.eye(7)[targets], targets, HAM10000.names)  # all right, all wrong
    found = fit_calibrator("temperature", validation).parameters["temperature"]
    assert found == pytest.approx(bound, rel=1e-6)


def test_a_planted_vector_is_found():
    scale = np.array([0.4, 0.5, 0.6, 0.5, 0.4, 0.7, 0.6])
    bias = np.array([-1.0, -0.5, 0.0, -1.5, 0.5, 2.0, 0.5])
    validation = planted(lambda logits: logits * scale + bias, 20_000, seed=3)
    parameters = fit_calibrator("vector", validation).parameters
    # Fisher information of (scale, bias); only differences of biases change a probability.
    inputs = np.stack([validation.logits, np.ones_like(validation.logits)])
    true = covariances(softmax(validation.logits * scale + bias))
    information = np.einsum("ani,nij,bnj->aibj", inputs, true, inputs).reshape(14, 14)
    standard_errors = np.sqrt(np.linalg.pinv(information).diagonal())
    errors = [parameters["scale"] - scale, parameters["bias"] - bias + bias.mean()]
    assert (standard_errors < 0.1).all()
    assert (np.abs(np.concatenate(errors)) < STANDARD_ERRORS * standard_errors).all()


def test_a_planted_dirichlet_map_is_found():
    rng = np.random.default_rng(4)
    weight = 0.5 * np.eye(7) + 0.05 * rng.normal(size=(7, 7))
    bias = rng.normal(size=7)

    def transform(logits):
        return log_softmax(logits, axis=1) @ weight.T + bias

    num_images = 20_000
    calibrator = fit_calibrator("dirichlet", planted(transform, num_images, seed=5))
    fresh = planted(transform, 5000, seed=6)
    # The divergence of a map of k free numbers from the truth is k / (2 N) on average, and a
    # chi-squared number of k degrees over 2 N; it exceeds twice its mean once in 20,000 draws.
    free = 7 * 7 + 7 - 8  # what is added to all classes alike changes nothing
    truth = transform(fresh.logits)
    assert divergence(truth, calibrator.apply(fresh.logits)) < 2 * free / (2 * num_images)
    vector = fit_calibrator("vector", planted(transform, num_images, seed=5))
    assert divergence(truth, vector.apply(fresh.logits)) > 5 * free / (2 * num_images)


def test_the_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(7)
    inputs, targets = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    parameters = np.eye(5, 6) + 0.3 * rng.normal(size=(5, 6))
    _, gradient = map_loss(parameters, inputs, targets)
    differences = approx_fprime(
        parameters.ravel(), lambda flat: map_loss(flat.reshape(5, 6), inputs, targets)[0], 1e-7
    )
    # Steps of 1e-7 leave an error of some 1e-7: curvature, and rounding of the loss.
    np.testing.assert_allclose(gradient.ravel(), differences, atol=1e-6)


def test_the_penalty_is_worked_by_hand():
    # One image, two classes, logits 0: log 2 nats.  Off the priors' centers by one of each:
    # 0.5 of scale, 0.1 of mixing, 2 of bias; half a square each.
    parameters = np.array([[1.5, 0.1, 2.0], [0.0, 1.0, 2.0]])
    loss, _ = map_loss(parameters, np.zeros((1, 2)), np.array([0]))
    assert loss == pytest.approx(np.log(2) + 4 / 2, abs=1e-12)


def test_with_few_images_a_map_hardly_leaves_temperature_scaling():
    validation = planted(lambda logits: logits / 2, 90, seed=8)
    fresh = planted(lambda logits: logits / 2, 5000, seed=9)
    for kind in ("vector", "dirichlet"):
        calibrated = fit_calibrator(kind, validation).apply(fresh.logits)
        plain = divergence(fresh.logits / 2, fresh.logits)
        assert divergence(fresh.logits / 2, calibrated) < plain / 2


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_a_calibrator_goes_through_json_and_says_what_it_was_fitted_on(kind):
    validation = simulate(200, seed=0, shares=THREE)
    calibrator = fit_calibrator(kind, validation)
    found = json.loads(json.dumps(asdict(calibrator)))
    num_images = len(validation)
    assert found["kind"] == kind
    assert found["fitted_on"] == {"split": "val", "num_images": num_images, "num_lesions": 200}
    parameters = found["parameters"]
    logits = validation.logits
    expected = {  # as the papers have it
        "temperature": lambda temperature: logits / temperature,
        "vector": lambda scale, bias: logits * scale + bias,
        "dirichlet": lambda weight, bias: np.log(softmax(logits)) @ np.transpose(weight) + bias,
    }[kind](**parameters)
    np.testing.assert_allclose(calibrator.apply(logits), expected, atol=1e-12)


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_fitting_sees_the_validation_split_and_nothing_else(kind):
    assert list(inspect.signature(fit_calibrator).parameters) == ["kind", "validation"]
    validation, test = simulate(300, seed=0, shares=THREE), simulate(300, seed=1, shares=THREE)
    first = fit_calibrator(kind, validation)
    test.logits[:] = test.logits[::-1] * 5
    test.targets[:] = 0
    assert fit_calibrator(kind, validation) == first
    changed = validation.with_logits(validation.logits * 2)  # the check can fail
    assert fit_calibrator(kind, changed) != first


def test_a_class_that_validation_lacks_leaves_the_temperature_alone():
    complete = simulate(300, seed=0, shares=THREE)
    without = scored_of(complete.table[complete.targets > 0], complete.taxonomy)
    calibrator = fit_calibrator("temperature", without)
    assert 0.2 < calibrator.parameters["temperature"] < 5
    for kind in ("vector", "dirichlet"):
        with pytest.raises(DataError) as error:
            fit_calibrator(kind, without)
        assert str(error.value) == (
            f"a {kind} calibrator needs 5 validation lesions of each class and there are 0 of bkl; "
            "set evaluation.calibrator to temperature"
        )


def test_many_images_of_a_few_lesions_are_too_few():
    targets = np.repeat(np.arange(7), 20)
    lesions = [
        f"HAM_{row // 5 if target == 3 else 1000 + row}" for row, target in enumerate(targets)
    ]
    validation = scored(np.eye(7)[targets], targets, HAM10000.names, lesions=lesions)
    with pytest.raises(DataError, match=r"of each class and there are 4 of df;"):
        fit_calibrator("vector", validation)


def test_a_class_without_a_mistake_keeps_a_finite_scale():
    rng = np.random.default_rng(10)
    targets = np.repeat(np.arange(7), 30)
    logits = rng.normal(size=(210, 7)) + np.eye(7)[targets]
    logits[:, 6] = np.where(targets == 6, 10, -10)
    for kind in ("vector", "dirichlet"):
        calibrator = fit_calibrator(kind, scored(logits, targets, HAM10000.names))
        weights = calibrator.parameters["scale" if kind == "vector" else "weight"]
        assert np.abs(weights).max() < 5


def test_what_is_judged_must_not_share_a_lesion_with_what_was_fitted():
    everything = simulate(100, seed=0)
    first, second = (
        everything.take(everything.lesions < 50),
        everything.take(everything.lesions > 49),
    )
    require_disjoint(first, second)
    with pytest.raises(DataError) as error:
        require_disjoint(first, everything.take(everything.lesions >= 48))
    assert str(error.value) == (
        "lesion 'HAM_0000048' is in both the predictions to evaluate and those that the calibrator "
        "is fitted on (2 in common); pass the predictions of the validation split, which shares "
        "nothing with them"
    )


def test_images_without_a_lesion_are_compared_by_their_own_id():
    def images(first, lesions):
        return scored(np.eye(7)[:2], np.arange(2), HAM10000.names, first=first, lesions=lesions)

    require_disjoint(images(0, ["", None]), images(2, ["", None]))
    with pytest.raises(DataError, match=r"^image 'ISIC_0000001' is in both .* \(1 in common\)"):
        require_disjoint(images(0, ["", None]), images(1, ["HAM_1", None]))


def test_priors_are_corrected_as_worked_by_hand():
    # Odds 9 : 1, learned from equal classes; 1 : 9 where it is used: odds 1 : 1.
    logits = np.log([[0.9, 0.1]]).astype(np.float32)
    corrected = correct_priors(logits, np.array([0.5, 0.5]), np.array([0.1, 0.9]))
    np.testing.assert_allclose(softmax(corrected), [[0.5, 0.5]], atol=1e-7)  # float32 logits


def test_a_class_stated_as_zero_has_no_probability_and_a_finite_logit():
    logits = np.array([[500.0, -3000.0, 0.0], [0.0, 0.0, 0.0]])
    corrected = correct_priors(logits, np.array([0.4, 0.6, 0.0]), np.array([0.0, 1.0, 0.0]))
    assert np.isfinite(corrected).all()
    np.testing.assert_array_equal(softmax(corrected), [[0, 1, 0], [0, 1, 0]])
    assert (logits[1] == 0).all()  # what went in is as it was


def test_a_class_that_training_never_saw_cannot_be_stated():
    with pytest.raises(DataError) as error:
        correct_priors(np.zeros((1, 3)), np.array([0.4, 0.0, 0.6]), np.array([0.4, 0.1, 0.5]))
    assert str(error.value) == (
        "class 1 of 3, counted from 0, is stated as 0.1 of all images, but training had no image "
        "of it; state it as 0"
    )


def populations(trained, actual, num_images: int, seed: int):
    """Images of normal classes: logits by Bayes' rule for two class shares, and targets."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(len(trained), 6)) * 1.5
    targets = rng.choice(len(actual), num_images, p=actual)
    images = centers[targets] + rng.normal(size=(num_images, 6))
    log_likelihood = -((images[:, None, :] - centers) ** 2).sum(axis=2) / 2
    return log_likelihood + np.log(trained), log_likelihood + np.log(actual), targets


def test_corrected_answers_are_worth_what_the_true_posterior_is():
    trained, actual = np.full(7, 1 / 7), np.array(list(HAM10000_SHARES.values()))
    actual = actual / actual.sum()
    learned, true, targets = populations(trained, actual, 3000, seed=11)
    corrected = correct_priors(learned, trained, actual)
    assert divergence(true, corrected) == pytest.approx(0, abs=1e-12)
    before, after, best = (
        calibration_errors(logits, targets).nll for logits in (learned, corrected, true)
    )
    assert after == pytest.approx(best, abs=1e-12)
    assert after < before - 0.02


def test_planted_priors_are_found_and_correct_the_answers():
    trained, actual = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.05, 0.1, 0.15, 0.7])
    learned, true, targets = populations(trained, actual, 3000, seed=12)
    found = estimate_priors(learned, trained)
    likelihood = softmax(learned) / trained
    # Where the likelihood is greatest, its slope along every share is the same.
    slope = (likelihood / (likelihood @ found)[:, None]).mean(axis=0)
    np.testing.assert_allclose(slope, 1, atol=1e-6)
    # Fisher information of the first three shares; the last is what is left.
    ratio = likelihood / (likelihood @ actual)[:, None]
    slopes = ratio[:, :3] - ratio[:, 3:]
    standard_errors = np.sqrt(np.linalg.inv(slopes.T @ slopes).diagonal())
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert (standard_errors < 0.02).all()
    assert (np.abs(found - actual)[:3] < STANDARD_ERRORS * standard_errors).all()
    before, after, best = (
        calibration_errors(logits, targets).nll
        for logits in (learned, correct_priors(learned, trained, found), true)
    )
    # Three shares fitted to N images cost 3 / (2 N) = 0.0005 nats on average.
    assert abs(after - best) < 0.003
    assert before - best > 0.03


def test_a_class_that_training_never_saw_is_estimated_as_absent():
    logits = np.array([[2.0, 0.0, 9.0], [0.0, 1.0, 9.0]])
    found = estimate_priors(logits, np.array([0.5, 0.5, 0.0]))
    assert found[2] == 0
    assert found.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=0.2,b=0.3,c=0.5", [0.2, 0.3, 0.5]),
        (" b = 0.9 ", [0.05, 0.9, 0.05]),
        ("c=1", [0, 0, 1]),
        ("a=0,b=1e-1", [0, 0.1, 0.9]),
        ("a=0.3333333,b=0.3333333,c=0.3333333", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_classes_without_a_stated_share_have_what_is_left_in_equal_parts(text, expected):
    shares = parse_prevalence(text, Taxonomy(names=("a", "b", "c")))
    np.testing.assert_allclose(shares, expected, atol=1e-12)
    assert shares.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "CLASS=SHARE,... of the classes a, b, c"),
        ("a=0.1,", "CLASS=SHARE,... of the classes a, b, c"),
        ("d=0.1", "CLASS=SHARE,... of the classes a, b, c"),
        ("a", "a list with a number for a"),
        ("a=b=1", "a list with a number for a"),
        ("a=0.1,a=0.2", "a list that names a once"),
        ("a=-0.1", "a list with a share from 0 to 1 for a"),
        ("a=2", "a list with a share from 0 to 1 for a"),
        ("a=nan", "a list with a share from 0 to 1 for a"),
        ("a=0.6,b=0.6", "shares that sum to at most 1"),
        ("a=0.6,b=0.2,c=0.1", "shares that sum to 1"),
        ("a=0.6,b=0.3,c=0.2", "shares that sum to 1"),
    ],
)
def test_a_prevalence_that_is_none_is_explained(text, expected):
    with pytest.raises(ConfigError) as error:
        parse_prevalence(text, Taxonomy(names=("a", "b", "c")))
    assert str(error.value) == f"evaluation.prevalence must be {expected}, got {text!r}"
