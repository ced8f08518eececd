"""Numbers as pages print them."""

import pytest

from reproduce.report.numbers import metric_name, metric_text, p_equals, p_text, with_unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0004, "< 0.001"),
        (0.0123, "0.012"),
        (0.04996, "0.04996"),
        (0.05, "0.050"),
        (0.0504, "0.050"),
        (1.0, "1.000"),
    ],
)
def test_a_p_value_is_on_the_side_of_the_level_that_it_is_on(value, text):
    assert p_text(value) == text


def test_a_p_value_in_a_sentence():
    assert p_equals(0.0001) == "p < 0.001"
    assert p_equals(0.3) == "p = 0.300"


def test_a_metric_at_an_epoch():
    assert metric_text("test.error@20") == "test error at epoch 20 (%)"
    assert metric_text("test.error") == "test error (%)"
    assert metric_name("validation.ce_loss_score@3") == "validation CE loss score at epoch 3"
    assert with_unit(6.82, "test.error@140", 2) == "6.82 %"
