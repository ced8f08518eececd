"""One call of each LSTM in a forward pass of the model: others would count every step as the first."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reproduce import attach


class Decoder(nn.Module):
    """An LSTM that reads a sequence in as many pieces as it is told."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(3, 4, num_layers=2)

    def forward(self, inputs: Tensor, pieces: int = 1, *, is_checkpointed: bool = False) -> Tensor:
        state, outputs = None, []
        for piece in inputs.chunk(pieces):
            run: Any = (
                (lambda *given: checkpoint(self.lstm, *given, use_reentrant=False)) if is_checkpointed else self.lstm
            )
            output, state = run(piece, state)
            outputs.append(output)
        return torch.cat(outputs)


def attached() -> tuple[Decoder, Tensor]:
    model = Decoder()
    attach("recurrent_batchnorm", model)
    return model, torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
def test_an_lstm_that_is_called_step_by_step_is_refused(training: bool) -> None:
    model, inputs = attached()
    model.train(training)
    expected = r"LSTM 'lstm' is called more than once in a forward pass.*whole sequence in one, or each call an LSTM"
    with pytest.raises(ValueError, match=expected):
        model(inputs, 6)
    assert model(inputs).shape == (6, 5, 4)  # what failed is no part of the next pass
    with pytest.raises(ValueError, match="is called more than once"):
        copy.deepcopy(model)(inputs, 2)


def test_calls_in_other_passes_or_alone_are_windows_as_before() -> None:
    model, inputs = attached()
    for _ in range(2):
        model(inputs)
        model.lstm(inputs[:2])
        model.lstm(inputs[2:])
    own = model.lstm.normalizations[1].terms["hidden"]
    assert own.updates[:6].tolist() == [6, 6, 4, 4, 2, 2]


def test_what_a_checkpoint_computes_again_is_no_second_call() -> None:
    """Also where a gradient is taken in the pass, which is then still open."""

    class Inner(Decoder):
        def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
            inputs = inputs.requires_grad_()
            made = super().forward(inputs, is_checkpointed=True)
            return torch.autograd.grad(made.square().sum(), inputs, create_graph=True)[0]

    model, (_, inputs) = Inner(), attached()
    attach("recurrent_batchnorm", model)
    model(inputs).square().sum().backward()
    assert model.lstm.weight_ih_l0.grad is not None


def test_threads_that_evaluate_one_model_do_not_count_each_others_calls() -> None:
    model, inputs = attached()
    model(inputs)
    model.eval()
    expected = model(inputs)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model(inputs), range(32)))
    assert all(torch.equal(each, expected) for each in found)
