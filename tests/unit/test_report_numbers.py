"""Numbers as pages print them."""

import pytest

from reproduce.report.numbers import p_equals, p_text


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
