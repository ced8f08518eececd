"""A cache of the words that a language model has just read, as an experiment's file says it. No torch here."""

from __future__ import annotations

from pydantic import Field

from reproduce.experiment.toml import Strict

CACHED_PERPLEXITY = "cached_perplexity"
SAMPLED_PERPLEXITY = "sampled_perplexity"


class WordCacheSpec(Strict):
    """A continuous cache beside the model's own predictions, while evaluating; `cached_perplexity` is measured with it.

    A word is as probable as hidden states that it followed are like the present one.
    """

    share: float = Field(gt=0, lt=1, description="Lambda, what the cache has of the mixture.")
    sharpness: float = Field(gt=0, description="Theta, by which products of hidden states are multiplied.")
    length: int = Field(ge=1, description="How many words of its stream the cache holds.")
