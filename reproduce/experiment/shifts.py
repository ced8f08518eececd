"""How test images are shifted away from training: corruptions and how severe, or another domain. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from reproduce.experiment.toml import Strict

Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "gaussian_blur",
    "motion_blur",
    "pixelate",
    "contrast",
    "brightness",
]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
Severities = Literal["cifar10_c", "tiny_imagenet_c"]
SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTED_ERROR = "corrupted_error"
# Of test images against others, in %: by the largest softmax, and by the density of the last activations.
OOD_AUROC = "ood_auroc"
OOD_DENSITY_AUROC = "ood_density_auroc"
SOURCE_ERROR = "source_error"  # where test is of a target domain: the error on test images of the source


class CorruptedSpec(Strict):
    """Corrupted versions of the test images, on which the error is measured at every evaluation.

    Each corruption at each of five severities is one set of images, evaluated by itself, in batches of
    ``eval_batch_size``. All Runs on a kind of device see the same ones.
    """

    kinds: Annotated[tuple[Corruption, ...], Field(min_length=1)] = Field(
        default=CORRUPTIONS, description="Which corruptions. Left out: all."
    )
    severities: Severities = Field(
        default="cifar10_c",
        description="Whose five severities: those of CIFAR-10-C, or the stronger ones of Tiny-ImageNet-C.",
    )
    examples: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Corrupt only the first so many test images. Left out: all."
    )

    @field_validator("kinds")
    @classmethod
    def _once_each(cls, kinds: tuple[Corruption, ...]) -> tuple[Corruption, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"each corruption once, got {', '.join(kinds)}")
        return kinds

    @property
    def metrics(self) -> frozenset[str]:
        """Of the test images, by name."""
        return frozenset(
            (CORRUPTED_ERROR, *map(error_of_kind, self.kinds), *map(error_of_severity, SEVERITIES)),
        )


class TargetSpec(Strict):
    """A target domain: the same kind of images, rotated. Its training images are read without their labels.

    Test images are then of the target, and validation is of the source: no label of the target is read before test.
    """

    rotation: Annotated[float, Field(ge=-360, le=360)] = Field(
        description="By how many degrees the target's images are turned, counterclockwise: bicubic, black outside."
    )
    examples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="How many of the training images are the target's: those behind the source's `train_examples`. "
        "Left out: all that are left.",
    )


def error_of_kind(kind: Corruption) -> str:
    """The metric of one corruption: its error, averaged over severities."""
    return f"{kind}_error"


def error_of_severity(severity: int) -> str:
    """The metric of one severity: its error, averaged over corruptions."""
    return f"{CORRUPTED_ERROR}_at_{severity}"
