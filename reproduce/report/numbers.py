"""Numbers, p values and the names of metrics, as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from reproduce.experiment.metrics import METRICS, place_of_metric
from reproduce.results.stats import SIGNIFICANCE, Estimate

MINUS = "−"
NOTHING = "–"
POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS = {name: metric.unit for name, metric in METRICS.items() if metric.unit == "%"}
SHORT = {"l0": "L0", "fvu": "FVU", "ce": "CE"}  # words of a metric's name that are abbreviations


def metric_text(metric: str) -> str:
    """`test.error` as "test error (%)", and `test.error@20` as "test error at epoch 20 (%)"."""
    split, name, epoch = place_of_metric(metric)
    words = [SHORT.get(word, word) for word in name.split("_")]
    at = [] if epoch is None else ["at", "epoch", str(epoch)]
    return " ".join([split, *words, *at]) + (f" ({UNITS[name]})" if name in UNITS else "")


def metric_name(metric: str) -> str:
    """`test.error` as "test error"."""
    return metric_text(metric).partition(" (")[0]


def number(value: float | None, decimals: int, sign: bool = False) -> str:
    """A number with a true minus sign; an en dash for nothing."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        raise ValueError(f"a table holds finite numbers; got {value}")
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def with_power(value: float, digits: int) -> str:
    """`3.4·10⁻⁶`, with so many digits at most."""
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    factor = f"{float(mantissa):g}".replace("-", MINUS)
    return ("" if factor == "1" else f"{factor}·") + "10" + str(int(power)).translate(POWERS)


def with_unit(value: float, metric: str, decimals: int) -> str:
    """`6.63 %` of an error; the number alone where the metric has no unit."""
    unit = UNITS.get(place_of_metric(metric).name, "")
    return number(value, decimals) + (f" {unit}" if unit else "")


def with_interval(estimate: Estimate | None, decimals: int, sign: bool = False) -> str:
    """`7.21 [7.05, 7.37]`, or the mean alone where there is no interval."""
    if estimate is None:
        return NOTHING
    text = number(estimate.mean, decimals, sign)
    if estimate.interval is None:
        return text
    low, high = estimate.interval.low, estimate.interval.high
    return f"{text} [{number(low, decimals, sign)}, {number(high, decimals, sign)}]"


def paper_number(value: float | None, decimals: int, sign: bool = False) -> str:
    """As many decimals as the paper prints, and no fewer than ours."""
    if value is None:
        return NOTHING
    return number(value, max(decimals, printed_decimals(value)), sign)


def p_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value < 0.001:
        return "< 0.001"
    rounded = f"{value:.3f}"
    crosses = (float(rounded) < SIGNIFICANCE) != (value < SIGNIFICANCE)  # 0.04996 is below 0.05, "0.050" is not
    return f"{value:.5f}" if crosses else rounded


def p_equals(value: float) -> str:
    """A p value inside a sentence: `p = 0.012`, `p < 0.001`."""
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def decimals_of(values: Iterable[float | None]) -> int:
    """Two decimals for errors and perplexities, more for numbers below one, fewer for thousands."""
    sizes = [abs(value) for value in values if value is not None]
    largest = max(sizes, default=1.0)
    return 4 if largest < 0.1 else 3 if largest < 1 else 2 if largest < 1000 else 1


def printed_decimals(value: float) -> int:
    return len(repr(float(value)).partition(".")[2].rstrip("0"))
