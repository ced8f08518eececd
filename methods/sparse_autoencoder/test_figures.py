"""The card's figures: which Results stand in which point, from synthetic Results and without torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from methods.sparse_autoencoder.figures import (
    FIGURES,
    HARD,
    arms_of,
    classified,
    density,
    family,
    frontier,
    splice,
)

IMAGES = {"fvu": 0.3, "l0": 11.0}


def result(
    test: dict[str, float] | None = None,
    kind: str = "autoencoding",
    strength: float = 0.0,
    reduction: str = "per_example",
    norm_weighted: bool = False,
    reconstruction: str | None = None,
    classifier_iterations: int | None = None,
    d_sae: int | None = 100,
    **options: Any,
) -> Any:
    """What a figure reads of a Result; ``test = None`` is a diverged Run."""
    task = SimpleNamespace(
        kind=kind,
        dataset="mnist",
        model="autoencoder" if d_sae else "pixels",
        model_options={"d_sae": d_sae, **options} if d_sae else options,
        reconstruction=reconstruction,
        classifier_iterations=classifier_iterations,
        train_examples=None,
    )
    params = {"l1_coefficient": strength, "reduction": reduction, "norm_weighted": norm_weighted} if strength else {}
    final = SimpleNamespace(test=test) if test else None
    return SimpleNamespace(config=SimpleNamespace(task=task, params=params, method="sparse_autoencoder"), final=final)


def labelled(axis: Any) -> dict[str, Any]:
    """The points of every line that the legend names."""
    return {str(line.get_label()): line.get_xydata() for line in axis.lines if str(line.get_label())[0] != "_"}


def test_every_way_to_a_sparse_code_is_a_family_of_its_own():
    found = [
        family(result(d_sae=10)),
        family(result(activation="topk", k=10)),
        family(result(activation="topk", k=25, alpha=3.0)),
        family(result(strength=0.4, decoder="unit_norm")),
        family(result(strength=0.4)),
        family(result(strength=0.4, norm_weighted=True)),
        family(result(strength=1e-3, reduction="batch_sum", reconstruction="pixel_mean")),
        family(result(strength=0.4, d_sae=800)),
    ]
    assert family(result(d_sae=None)) == ("no code", 0.0, "pixels")
    assert found[0] == (HARD, 10.0, "10 units")
    assert found[1][1:] == (10.0, "k 10")
    assert found[3][1:] == (0.4, "0.4")
    assert len({name for name, _, _ in found}) == len(found)
    assert family(result(strength=0.8, decoder="unit_norm"))[0] == found[3][0]  # another price, the same line


def test_a_price_of_another_kind_is_no_hard_code():
    density = result(d_sae=300)
    density.config.params = {"l1_coefficient": 0.0, "kl_coefficient": 5e-3 / 32, "target_density": 0.1}
    assert family(density) == ("KL, 300 units, density 0.1", 5e-3 / 32, "0.00016")
    priced = result(d_sae=300)
    priced.config.method, priced.config.params = "activity_prior", {"strength": 5e-3, "kind": "kl"}
    assert family(priced) == ("activity prior, 300 units", 5e-3, "0.005")
    assert family(result(d_sae=300))[0] == HARD


def test_seeds_of_an_arm_are_together_and_diverged_runs_nowhere():
    results = [result({"fvu": value, "l0": 9.0}, strength=0.4) for value in (0.2, 0.3)]
    results += [result(IMAGES, d_sae=10), result(None, strength=0.4), result({"fvu": 0.5}, d_sae=5)]
    (arms,) = arms_of(results, "autoencoding", "fvu").values()
    assert sorted(len(members) for members in arms.values()) == [1, 2]


def test_another_protocol_is_another_problem_and_another_loss_scale_is_not():
    results = [result(IMAGES), result(IMAGES, classifier_iterations=100)]
    assert len(arms_of(results, "autoencoding", "fvu")) == 2
    results = [result(IMAGES), result(IMAGES, reconstruction="pixel_mean", strength=1e-3)]
    assert len(arms_of(results, "autoencoding", "fvu")) == 1


def test_the_frontier_joins_means_of_seeds_in_the_order_of_active_units():
    results = [result({"fvu": fvu, "l0": float(size)}, d_sae=size) for size, fvu in ((20, 0.35), (5, 0.66), (10, 0.5))]
    results += [result({"fvu": 0.3 + shift, "l0": 11 + 10 * shift}, strength=1.0) for shift in (-0.1, 0.1)]
    results += [result({"fvu": 0.2, "l0": 30.0}, strength=0.4)]
    (panel,) = frontier(results).subfigs[0].axes
    lines = labelled(panel)
    assert lines[HARD].tolist() == [[5.0, 0.66], [10.0, 0.5], [20.0, 0.35]]
    (priced,) = (points for name, points in lines.items() if name != HARD)
    assert priced == pytest.approx(np.array([[11.0, 0.3], [30.0, 0.2]]))
    dots = np.concatenate([line.get_xydata() for line in panel.lines if line.get_marker() == "."])
    assert len(dots) == len(results)
    assert {text.get_text() for text in panel.texts} == {"5 units", "10 units", "20 units", "1", "0.4"}


def test_the_splice_shows_variance_and_nats():
    kind = "activation_autoencoding"
    results = [
        result({"fvu": 0.1 * price, "l0": 40 / price, "ce_loss_increase": 0.2 * price}, kind, strength=price)
        for price in (0.5, 1.0, 2.0)
    ]
    left, right = splice(results).subfigs[0].axes
    (points,) = labelled(right).values()
    assert points == pytest.approx(np.array([[20.0, 0.4], [40.0, 0.2], [80.0, 0.1]]))
    assert "nats" in right.get_ylabel()
    assert "variance" in left.get_ylabel()


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_figure_without_results_is_none(name):
    _, draw = FIGURES[name]
    assert draw([]) is None


def test_errors_of_classifiers_stand_beside_the_papers():
    found = [
        result({"classifier_error": error, "l0": float(k)}, classifier_iterations=100, activation="topk", k=k)
        for k, error in ((10, 2.4), (25, 2.2))
    ]
    found.append(result({"classifier_error": 7.2, "l0": 150.0}, classifier_iterations=100, d_sae=None))
    (panel,) = classified(found).subfigs[0].axes
    (points,) = labelled(panel).values()
    assert points.tolist() == [[10.0, 2.4], [25.0, 2.2]]
    printed = [line.get_xydata().tolist() for line in panel.lines if line.get_marker() == "D"]
    assert printed == [[[10.0, 2.1], [25.0, 1.35], [40.0, 1.54]]]  # Makhzani & Frey 2013, Table 1


def test_the_density_of_features_leaves_out_the_dead():
    tests = [{"dead_fraction": dead, "l0": active} for dead, active in ((0.5, 10.0), (0.0, 20.0))]
    found = [result(test, strength=1.0 / (place + 1)) for place, test in enumerate(tests)]
    found += [result({"dead_fraction": 0.0, "l0": 100.0}), result({"dead_fraction": 1.0, "l0": 0.0}, strength=9.0)]
    left, right = density(found).subfigs[0].axes
    (dead,), (rate,) = (labelled(axis).values() for axis in (left, right))
    assert dead.tolist() == [[0.0, 1.0], [10.0, 0.5], [20.0, 0.0]]
    assert rate.tolist() == [[0.0, 0.0], [10.0, 0.2], [20.0, 0.2]]


def test_pixels_alone_are_no_frontier():
    pixels = [result({"fvu": 0.0, "l0": 151.0}, d_sae=None, classifier_iterations=1000)]
    assert frontier(pixels) is None
    (one,) = frontier([*pixels, result(IMAGES), result(IMAGES, d_sae=None)]).subfigs
    assert one.axes[0].get_title() == "mnist"
