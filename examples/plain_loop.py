"""A method of this suite in an ordinary PyTorch loop: `python examples/plain_loop.py`."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce import Method, attach, load_method


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 64) in [0, 1], and their labels."""
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def network() -> nn.Sequential:
    """Any model will do; attach() finds its ReLU modules."""
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def train(model: nn.Module, images: Tensor, labels: Tensor, method: Method, epochs: int = 10) -> None:
    """Your loop, with three lines more."""
    generator = torch.Generator().manual_seed(0)
    handle = attach(method, model, sites="post")  # 1. before the optimizer: a method may add parameters
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for epoch in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(100):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss = loss + handle.penalty(progress=epoch / epochs)  # 2. once after each forward pass
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.after_step(optimizer)  # only some methods act here; for the others it does nothing
    # 3. The model is as it was, with trained weights. Keep the handle where the method became a part of the network,
    # as batch normalization does: remove() takes that away too.
    handle.remove()


def main() -> None:
    images, labels = digits()
    found = []
    for strength in (0.0, 0.03):
        torch.manual_seed(0)
        model = network()
        method = load_method("activity_norm", kind="l2", strength=strength, reduction="mean")
        train(model, images[:1200], labels[:1200], method)
        with torch.no_grad():
            error = (model.eval()(images[1200:]).argmax(1) != labels[1200:]).float().mean()
            square = model[:2](images[1200:]).square().mean()
        print(f"strength {strength}: test error {100 * error:.1f} %, mean square of the first layer {square:.3f}")
        found.append((float(square), 100 * float(error)))
    (free, free_error), (held, held_error) = found
    print(
        f"The penalty brings the mean square from {free:.3f} to {held:.3f}, and the test error from {free_error:.1f} "
        f"to {held_error:.1f} %, of one seed."
    )


if __name__ == "__main__":
    main()
