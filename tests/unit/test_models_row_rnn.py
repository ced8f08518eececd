"""The recurrent image classifier: what it reads in which order, its blocks, and its Site."""

import pytest
import torch
from torch import nn

from reproduce.errors import UserError
from reproduce.method.sites import watch
from reproduce.models import Sizes, build
from reproduce.models.row_rnn import BLOCKS

IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5) / 100


def model(sizes: Sizes = Sizes((3, 4, 5), 10), seed: int = 0, **options) -> nn.Module:
    return build("row_rnn", {"hidden": 6, **options}, sizes, torch.Generator().manual_seed(seed), None)


def test_a_step_is_a_row_of_all_channels_or_a_pixel():
    rows = model().steps(IMAGES)
    assert rows.shape == (4, 2, 15)
    assert torch.equal(rows[2, 1], IMAGES[1, :, 2, :].flatten())
    pixels = model(order="pixels").steps(IMAGES)
    assert pixels.shape == (20, 2, 3)
    assert torch.equal(pixels[2 * 5 + 3, 1], IMAGES[1, :, 2, 3])
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    assert torch.equal(model()(last), model()(IMAGES))


def test_a_permutation_is_the_same_for_every_run():
    one, other = (model(seed=seed, order="pixels", permutation_seed=7) for seed in (0, 1))
    assert torch.equal(one.permutation, other.permutation)
    plain = model(order="pixels").steps(IMAGES)
    assert torch.equal(one.steps(IMAGES), plain[one.permutation])
    assert sorted(one.permutation.tolist()) == list(range(20)) != one.permutation.tolist()
    assert not torch.equal(model(order="pixels", permutation_seed=8).permutation, one.permutation)


@pytest.mark.parametrize("cell", ["lstm", "tanh", "gru"])
def test_equals_torch_layers_on_the_last_output(cell):
    network = model(cell=cell)
    trace = watch(network.train())
    logits = network(IMAGES)
    reference = {"lstm": nn.LSTM, "tanh": nn.RNN, "gru": nn.GRU}[cell](15, 6, batch_first=True)
    reference.load_state_dict(network.recurrent.state_dict())
    output, _ = reference(IMAGES.permute(0, 2, 1, 3).reshape(2, 4, 15))
    torch.testing.assert_close(logits, network.classifier(output[:, -1]))
    (record,) = trace.select("post")
    assert (record.site.name, record.site.axes) == ("post", "tnc")
    torch.testing.assert_close(record.activation, output.transpose(0, 1))


@pytest.mark.parametrize("cell", ["lstm", "tanh", "gru"])
def test_orthogonal_blocks_one_for_each_gate(cell):
    kernel = model(cell=cell, initialisation="orthogonal").recurrent.weight_hh_l0.detach()
    blocks = kernel.chunk(BLOCKS[cell])
    for block in blocks:
        torch.testing.assert_close(block @ block.T, torch.eye(6))
    assert len({float(block[0, 0]) for block in blocks}) == BLOCKS[cell]
    assert not torch.allclose(model(cell=cell).recurrent.weight_hh_l0[:6] @ kernel[:6].T, torch.eye(6))


@pytest.mark.parametrize("cell", ["lstm", "tanh", "gru"])
def test_identity_from_hidden_and_orthogonal_from_input_in_each_gate(cell):
    recurrent = model(cell=cell, initialisation="identity").recurrent
    for block in recurrent.weight_hh_l0.detach().chunk(BLOCKS[cell]):
        assert torch.equal(block, torch.eye(6))
    for block in recurrent.weight_ih_l0.detach().chunk(BLOCKS[cell]):  # (6, 8): orthonormal rows
        torch.testing.assert_close(block @ block.T, torch.eye(6))


def test_parameters_of_the_published_size():
    """128 tanh units, pixel by pixel: 128 (1 + 128 + 2) + 10 (128 + 1)."""
    network = model(Sizes((1, 28, 28), 10), hidden=128, cell="tanh", order="pixels")
    assert sum(parameter.numel() for parameter in network.parameters()) == 128 * 131 + 1290


def test_words_are_refused():
    with pytest.raises(UserError, match="takes images"):
        model(Sizes((), 30))
