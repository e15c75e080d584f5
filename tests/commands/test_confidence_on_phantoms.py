"""The label-free confidence on phantoms of known deformation: results made worse on purpose are trusted less, and flagged."""

import numpy as np
import pytest

from nnssl_reg import register
from nnssl_reg.commands.pair_evidence import evidence_of, met_features
from nnssl_reg.commands.pair_report import write_report
from nnssl_reg.evaluation.metrics import folding_percent, tre_mm
from nnssl_reg.evaluation.phantoms import make_phantom, random_grid, rotation
from nnssl_reg.evaluation.summary import PairResult, Scores, results_table, with_confidence

SHAPE, SPACING = (40, 34, 34), (9.5, 9.0, 9.5)


def start(middle, angles=(0.0, 0.0, 0.0), shift_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """About the middle of the fixed image, turned and shifted."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(angles)
    matrix[:3, 3] = middle + shift_mm - matrix[:3, :3] @ middle
    return matrix


@pytest.fixture(scope="module")
def judged() -> dict[str, tuple[Scores, float]]:
    """Scores and true landmark error in mm of one pair from starts that get worse."""
    fixed, moving = (make_phantom(rng, random_grid(rng, np.array(SHAPE), np.array(SPACING)), "CT")
                     for rng in (np.random.default_rng([5, i]) for i in (1, 2)))  # fmt: skip
    middle = fixed.image.grid.center_mm
    starts = {
        "right": "auto",
        "4 cm off": start(middle, shift_mm=(0, 0, 40)),
        "turned left": start(middle, (0, 0, 1.2)),
        "turned back": start(middle, (1.5, 0, 0)),
        "upside down": start(middle, (np.pi, 0, 0)),
    }
    found = {}
    for name, initial in starts.items():
        done = register(fixed.image, moving.image, features="mind", initial=initial, device="cpu",
                        overrides={"registration.iterations": 30}).registered  # fmt: skip
        scores = with_confidence(
            Scores(), evidence_of(done, met_features(done), folding_percent(done.field.jacobian_determinant()))
        )
        found[name] = scores, float(tre_mm(fixed.landmarks_mm, moving.landmarks_mm, done.field).mean())
    return found


def test_results_that_were_made_wrong_are_trusted_less_than_half_as_much_as_right_ones_and_flagged(judged):
    least = min(mm for _, mm in judged.values())
    right = {name: scores for name, (scores, mm) in judged.items() if mm < 1.5 * least}
    wrong = {name: scores for name, (scores, mm) in judged.items() if mm > 3 * least}
    assert {"right", "4 cm off"} <= set(right) and {"turned left", "upside down"} <= set(wrong)
    assert max(s.confidence for s in wrong.values()) < 0.5 * min(s.confidence for s in right.values())
    assert all(s.confidence_flag == "low" for s in wrong.values()) and all(s.confidence_flag != "low" for s in right.values())


def test_confidence_falls_as_the_true_error_rises(judged):
    confidence, error = (np.array(v) for v in zip(*((scores.confidence, mm) for scores, mm in judged.values())))
    ranks = [np.argsort(np.argsort(values)) for values in (confidence, -error)]
    assert np.corrcoef(*ranks)[0, 1] >= 0.7


def test_table_and_report_flag_the_worst(judged, tmp_path):
    worst = min(judged, key=lambda name: judged[name][0].confidence)
    assert judged[worst][0].confidence_flag == "low"
    results = [PairResult(name, "f", "m", scores, 1.0) for name, (scores, _) in judged.items()]
    assert f"low confidence: {worst}: {judged[worst][0].confidence_reason}" in results_table(results)
    page = write_report(tmp_path, results).read_text(encoding="utf-8")
    low = sum(scores.confidence_flag == "low" for scores, _ in judged.values())
    assert f"low {judged[worst][0].confidence:.2f}" in page and "Low confidence" in page and page.count(">low ") >= low
