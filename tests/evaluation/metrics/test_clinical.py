"""Expected values come from scikit-learn, or are worked out by hand."""

import numpy as np
import pytest
from simulated import simulate
from sklearn import metrics as sklearn_metrics

from dermalyze.evaluation.metrics.classification import replicated
from dermalyze.evaluation.metrics.clinical import decision_curve, malignant_roc
from dermalyze.evaluation.scores import Scored
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import Taxonomy

EXACT = 1e-12
C = len(HAM10000.names)


@pytest.fixture(scope="module")
def scored():
    return simulate(300, seed=1)


@pytest.fixture(scope="module")
def metrics(scored):
    once = replicated(scored, np.ones((1, len(scored))), 0.7)
    return {name: float(values[0]) for name, values in once.items()}


def test_agreement_is_scikit_learns(scored, metrics):
    kappa = sklearn_metrics.cohen_kappa_score(scored.targets, scored.predicted)
    mcc = sklearn_metrics.matthews_corrcoef(scored.targets, scored.predicted)
    assert metrics["cohen_kappa"] == pytest.approx(kappa, abs=EXACT)
    assert metrics["mcc"] == pytest.approx(mcc, abs=EXACT)


def test_average_precision_and_brier_are_scikit_learns(scored, metrics):
    is_class = np.eye(C)[scored.targets]
    values = sklearn_metrics.average_precision_score(is_class, scored.probs, average=None)
    for name, value in zip(HAM10000.names, values, strict=True):
        assert metrics[f"average_precision/{name}"] == pytest.approx(value, abs=EXACT)
    assert metrics["macro_average_precision"] == pytest.approx(values.mean(), abs=EXACT)
    brier = sum(
        sklearn_metrics.brier_score_loss(is_class[:, c], scored.probs[:, c]) for c in range(C)
    )
    assert metrics["brier"] == pytest.approx(brier, abs=EXACT)


def test_malignant_is_akiec_bcc_and_mel_against_the_rest(scored, metrics):
    labels, answers = (
        np.isin(np.asarray(HAM10000.names)[indices], ["akiec", "bcc", "mel"])
        for indices in (scored.targets, scored.predicted)
    )
    score = scored.probs[:, [0, 1, 4]].sum(axis=1)
    found = metrics["malignant_sensitivity"], metrics["malignant_specificity"]
    assert found[0] == pytest.approx(answers[labels].mean(), abs=EXACT)
    assert found[1] == pytest.approx((~answers[~labels]).mean(), abs=EXACT)
    auc = sklearn_metrics.roc_auc_score(labels, score)
    assert metrics["malignant_auc"] == pytest.approx(auc, abs=EXACT)
    curve = malignant_roc(scored)
    area = sklearn_metrics.auc(curve.false_positive_rate, curve.sensitivity)
    assert area == pytest.approx(auc, abs=EXACT)
    assert (curve.false_positive_rate[0], curve.sensitivity[0]) == (0, 0)
    assert (curve.false_positive_rate[-1], curve.sensitivity[-1]) == (1, 1)


def test_the_partial_area_looks_above_the_stated_sensitivity(scored, metrics):
    is_malignant, score = scored.is_malignant, scored.malignancy
    standardized = sklearn_metrics.roc_auc_score(~is_malignant, -score, max_fpr=0.3)
    area = 0.3**2 / 2 + (2 * standardized - 1) * (0.3 - 0.3**2 / 2)
    assert metrics["malignant_partial_auc"] == pytest.approx(area / 0.3, abs=1e-9)


def test_one_answer_for_everything_agrees_by_chance_alone(scored):
    always_nv = scored.with_logits(np.tile(np.eye(C)[HAM10000.names.index("nv")], (len(scored), 1)))
    values = replicated(always_nv, np.ones((1, len(scored))))
    assert values["cohen_kappa"][0] == pytest.approx(0)
    assert values["mcc"][0] == pytest.approx(0)
    assert values["balanced_accuracy"][0] == pytest.approx(1 / C)


def test_net_benefit_of_five_images_by_hand(scored):
    mel = np.array([0.7, 0.6, 0.4, 0.2, 0.05])
    five = Scored(
        table=scored.table[:5],
        logits=np.log(np.stack([mel, 1 - mel], axis=1)),
        targets=np.array([0, 0, 1, 0, 1]),
        lesions=np.arange(5),
        taxonomy=Taxonomy(names=("mel", "nv"), malignant=("mel",)),
    )
    curve = decision_curve(five)
    at = curve.thresholds.index(0.3)
    # At 0.3 three images are called malignant, two of them rightly.
    assert curve.model[at] == pytest.approx(2 / 5 - 1 / 5 * 0.3 / 0.7)
    assert curve.all[at] == pytest.approx(3 / 5 - 2 / 5 * 0.3 / 0.7)


def test_benign_images_alone_have_no_curve(scored):
    benign = scored.take(~scored.is_malignant)
    assert decision_curve(benign) is None
    assert malignant_roc(benign) is None
    assert "malignant_auc" not in {
        name
        for name, values in replicated(benign, np.ones((1, len(benign)))).items()
        if np.isfinite(values[0])
    }
