"""Words that the pages use in a sense of their own."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("arm", "one way to train in an experiment: a method with its settings. All arms share data, network and recipe."),
    ("Site", "a place in a network where a method acts: the output of a layer, before or after its non-linearity."),
    (
        "sealed Result",
        "the record of one finished run with a hash of its content: one run, one Result. A Result that was edited does "
        "not read.",
    ),
    ("n", "the number of seeds that a mean or a gap rests on: runs that differ in nothing but their random numbers."),
    ("gap", "an arm's mean minus the baseline's, on the test set."),
    (
        "paired",
        "an arm and the baseline are compared seed by seed, where runs of one seed rise and fall together; elsewhere "
        "their means are compared.",
    ),
    (
        "Holm",
        "an adjustment of p values: among all the arms of one column, the chance of calling any arm different that is "
        "not stays below 5 %.",
    ),
    (
        "reduced scale",
        "fewer or other examples, a smaller or another network, or fewer epochs than the paper's; what it is, the "
        "deviations of each experiment say. Then a verdict only says which way a gap points, and values are not "
        "compared.",
    ),
    (
        "same direction, opposite",
        "the interval of that gap alone excludes zero. Where many gaps of a table are tested, some do so by chance: a "
        "claim whose p is above 0.05 after adjustment over its table says so beside the word.",
    ),
    ("undecided", "the interval of a gap holds zero: these seeds cannot tell which way it points."),
    ("L0", "how many units of a code are active on one example, in the mean."),
    (
        "FVU",
        "fraction of variance unexplained: squared error of a reconstruction over the variance of what is rebuilt.",
    ),
)
