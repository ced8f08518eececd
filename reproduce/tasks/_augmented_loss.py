"""The augmented loss of a language model: predictions against words whose vectors are like the next word's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce.errors import UserError


def augmented_loss(logits: Tensor, targets: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    """``mean KL(y || p)`` with ``y = softmax(L l_t / tau)`` and ``p = softmax(z / tau)``; 0-dim, in float32 at least.

    l_t is the vector of the word that comes. The distribution y is a target: no gradient reaches the vectors by it.

    Args:
        logits: z (..., V).
        targets: the words that come (...), int64.
        vectors: L (V, d), a row for each word.
        temperature: tau, positive.

    Raises:
        ValueError: vectors of another number of words than logits have.

    Source: Inan, Khosravi & Socher 2017; tau is that of both distributions.
    """
    if len(vectors) != logits.shape[-1]:
        raise ValueError(f"logits of {logits.shape[-1]} words need as many vectors, got {tuple(vectors.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        vectors = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
        likeness = F.linear(F.embedding(targets.flatten(), vectors), vectors)
        wanted = (likeness / temperature).log_softmax(-1)
        given = (logits.flatten(0, -2).to(wanted.dtype) / temperature).log_softmax(-1)
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True)


def vectors_of(model: nn.Module, name: str) -> Tensor:
    """The embedding's rows of a language model.

    Raises:
        UserError: the model, called ``name`` here, has no module ``embedding``.
    """
    embedding = getattr(model, "embedding", None)
    if not isinstance(embedding, nn.Embedding):
        raise UserError(
            f"recipe.augmented_loss needs a model with a module 'embedding'; {name!r} has none", ["augmented_loss"]
        )
    return embedding.weight
