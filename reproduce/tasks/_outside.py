"""Telling a task's test images from others: by the largest softmax, and by the density of the last activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reproduce.data import Images
from reproduce.errors import UserError
from reproduce.experiment.shifts import OOD_AUROC, OOD_DENSITY_AUROC
from reproduce.method.records import Record
from reproduce.method.sites import Site, sites_with_role

SHRINKAGE = 0.1  # of each class's covariance towards a multiple of the identity; ours


class ClassGaussians:
    """One Gaussian for each class of features (n, d), weighted by the classes' shares of the labels (n,).

    Means are those of the classes; covariances ``(1 - a) S_c + a (tr S / d) I``, with S_c the class's own, S that
    within all classes, and a = `SHRINKAGE`. In float64, on the features' device.

    Raises:
        ValueError: a class without an example, or features that are all alike within classes.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        features = features.double()
        counts = torch.bincount(labels, minlength=classes).double()
        if not bool((counts > 0).all()):
            raise ValueError(f"class {int(counts.argmin())} has no example to fit a Gaussian to")
        one_hot = torch.nn.functional.one_hot(labels, classes).double()
        self.means = one_hot.mT @ features / counts[:, None]
        centred = features - self.means[labels]
        variance = centred.square().mean()
        if not variance > 0:
            raise ValueError("features do not vary within classes: there is no density to fit")
        own = [centred[labels == c].mT @ centred[labels == c] / counts[c] for c in range(classes)]
        identity = torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
        covariances = (1 - SHRINKAGE) * torch.stack(own) + SHRINKAGE * variance * identity
        self.roots = torch.linalg.cholesky(covariances)
        self.log_shares = (counts / counts.sum()).log()

    def log_density(self, features: Tensor) -> Tensor:
        """``log sum_c p_c N(z; m_c, C_c)`` but for the constant of the dimension: (n,) float64."""
        of_classes = []
        for mean, root, log_share in zip(self.means, self.roots, self.log_shares, strict=True):
            white = torch.linalg.solve_triangular(root, (features.double() - mean).mT, upper=False)
            of_classes.append(log_share - 0.5 * white.square().sum(0) - root.diagonal().log().sum())
        return torch.stack(of_classes).logsumexp(0)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The area under the ROC curve in percent: how often a score from inside is above one from outside, ties half."""
    ordered = outside.sort().values
    below = torch.searchsorted(ordered, inside) + torch.searchsorted(ordered, inside, right=True)
    return 100 * below.double().mean().item() / (2 * len(outside))


def outside_aurocs(
    model: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    train: Images,
    test: Images,
    outside: Images,
    classes: int,
) -> dict[str, float]:
    """Both areas; the Gaussians are fitted to the training images. The model is in evaluation mode.

    Raises:
        UserError: a model whose last activations are sequences, or that has none.
    """
    site = _last_site(model)
    latents: list[Tensor] = []
    handle = site.register_forward_hook(
        lambda _, __, activation: latents.append(Record(site, activation.detach()).channel_means)
    )

    def passed(images: Tensor) -> tuple[Tensor, Tensor]:
        latents.clear()
        logits = logits_of(images)
        return torch.cat(latents), logits.softmax(1).amax(1)

    try:
        gaussians = ClassGaussians(passed(train.images)[0], train.labels, classes)
        of_test, of_others = (
            (gaussians.log_density(latent), confidence)
            for latent, confidence in (passed(part.images) for part in (test, outside))
        )
    finally:
        handle.remove()
    return {OOD_AUROC: auroc(of_test[1], of_others[1]), OOD_DENSITY_AUROC: auroc(of_test[0], of_others[0])}


def _last_site(model: nn.Module) -> Site:
    try:
        site = sites_with_role(model, "post")[-1]
    except ValueError as error:
        raise UserError(f"task.out_of_distribution: no density of activations: {error}") from error
    if site.is_sequence:
        raise UserError(f"task.out_of_distribution: Site {site.name!r} holds a sequence: choose another model")
    return site
