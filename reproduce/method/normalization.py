"""Batch normalization that fits a Site: each feature over the batch and, for maps, over space."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from reproduce.method.sites import Axes, Site

_OF: dict[Axes, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    **{"nc": nn.BatchNorm1d, "ncl": nn.BatchNorm1d},
    **{"nchw": nn.BatchNorm2d, "ncdhw": nn.BatchNorm3d},
}


class BatchNormOfLast(nn.Module):
    """Batch normalization of the last axis, over all others.

    It holds torch's and is none itself, since `nn.SyncBatchNorm.convert_sync_batchnorm` would put one of the second
    axis in its place.
    """

    def __init__(self, features: int, **options: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, **options)

    @property
    def weight(self) -> nn.Parameter:
        return self.norm.weight

    def forward(self, activation: Tensor) -> Tensor:
        normalized: Tensor = self.norm(activation.reshape(-1, activation.shape[-1]))
        return normalized.view(activation.shape)


Normalization = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | BatchNormOfLast


def batch_normalization(site: Site, **options: Any) -> Normalization:
    """Torch's batch normalization of a Site's features, with its options.

    Raises:
        ValueError: a Site that holds a sequence, has not seen a batch yet, or whose axes are a guess.
    """
    if site.is_sequence:
        raise ValueError(
            f"Site {site.name!r} holds a sequence (axes {site.axes!r}), whose time steps batch normalization cannot "
            "treat apart: choose other `sites`"
        )
    return _OF.get(site.known_axes, BatchNormOfLast)(site.features, **options)
