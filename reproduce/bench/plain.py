"""Training as one writes it in an afternoon: what the loop of this project is timed beside.

Models are the same; all else is torch alone: data ready in memory, no augmentation, torch's losses and optimiser with
their defaults, a rate that is a number, nothing recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def image_steps(
    model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, rate: float, momentum: float, decay: float
) -> Callable[[], None]:
    """A function that takes the next step on images (N, C, H, W) in float32, normalised, with labels (N,)."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    model.train()

    def batches() -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(len(images), generator=generator).split(batch_size)

    chosen = batches()

    def step() -> None:
        rows = next(chosen)
        optimizer.zero_grad()
        loss = criterion(model(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()

    return step


def word_steps(
    model: nn.Module, tokens: Tensor, state: tuple[Tensor, ...], window: int, rate: float, norm: float
) -> Callable[[], None]:
    """A function that takes the next step on token streams (T, B), the state carried on; as pytorch/examples does."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    model.train()

    def windows() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for start in range(0, len(tokens) - window - 1, window):
                yield tokens[start : start + window], tokens[start + 1 : start + window + 1]

    chosen = windows()

    def step() -> None:
        nonlocal state
        inputs, targets = next(chosen)
        optimizer.zero_grad()
        logits, state = model(inputs, tuple(part.detach() for part in state))
        loss = criterion(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), norm)
        optimizer.step()

    return step
