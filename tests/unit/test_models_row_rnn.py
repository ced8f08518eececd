"""The recurrent image classifier: what it reads in which order, its blocks, and its Site."""

import pytest
import torch
from torch import nn

from reproduce.errors import UserError
from reproduce.method.sites import watch
from reproduce.models import Sizes, build
from reproduce.models.row_rnn import BLOCKS, BoundedSpectrum

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


def test_a_margin_holds_the_singular_values_and_begins_as_the_orthogonal_kernel():
    """Singular values by Vorontsov et al.'s law, after steps that would otherwise leave the margin."""
    free = model(cell="tanh", initialisation="orthogonal")
    for margin in (0.0, 0.1, 1.0):
        network = model(cell="tanh", initialisation="orthogonal", margin=margin)
        torch.testing.assert_close(network(IMAGES), free(IMAGES))
        optimizer = torch.optim.RMSprop(network.parameters(), lr=0.05)
        before = network.recurrent.weight_hh_l0.detach().clone()
        for _ in range(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(IMAGES), torch.tensor([1, 2])).backward()
            optimizer.step()
        kernel = network.recurrent.weight_hh_l0.detach()
        assert (kernel - before).abs().max() > 0.05  # the bases move, whatever the margin
        singular = torch.linalg.svdvals(kernel.double())
        held = network.recurrent.parametrizations.weight_hh_l0.original2.detach().double()
        torch.testing.assert_close(
            singular.float(), (2 * margin * (1 / (1 + (-held).exp()) - 0.5) + 1).sort(descending=True).values.float()
        )
        assert (singular - 1).abs().max() <= margin + 1e-6
        assert ((singular - 1).abs().max() > 1e-3) == (margin > 0)


def test_the_step_reads_the_kernel_of_now():
    """A recurrent layer keeps a list of its weights, which must follow the parameters that make this one."""
    network = model(cell="tanh", initialisation="orthogonal", margin=0.5)
    network(IMAGES)
    with torch.no_grad():
        for parameter in network.recurrent.parametrizations.weight_hh_l0.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    places = [parameter.data_ptr() for parameter in network.parameters()]
    layer, value = network.recurrent, torch.zeros(2, 6)
    for row in network.steps(IMAGES):
        value = torch.tanh(
            row @ layer.weight_ih_l0.T + layer.bias_ih_l0 + value @ layer.weight_hh_l0.T + layer.bias_hh_l0
        )
    torch.testing.assert_close(network(IMAGES), network.classifier(value))
    assert [parameter.data_ptr() for parameter in network.parameters()] == places
    assert type(layer).flatten_parameters is not nn.RNN.flatten_parameters  # which would move them on CUDA


def test_gradients_of_a_bounded_spectrum():
    start = nn.init.orthogonal_(torch.empty(5, 5, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
    made = BoundedSpectrum(start, 0.3)
    parameters = [
        torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        for shape in ((5, 5), (5, 5), (5,))
    ]
    assert torch.autograd.gradcheck(made, parameters)


def test_glorot_blocks():
    """U(+-sqrt(6 / (in + out))): its bound and its variance, (2 / (in + out)), within three standard errors."""
    kernel = model(hidden=200, cell="tanh", initialisation="glorot").recurrent.weight_hh_l0.detach().double()
    bound = (6 / 400) ** 0.5
    assert 0.999 * bound < kernel.abs().max() <= bound
    assert abs(kernel.square().mean() / (2 / 400) - 1) < 3 * (0.8 / kernel.numel()) ** 0.5


def test_a_margin_needs_its_start():
    with pytest.raises(UserError, match=r"margin 0.1 needs cell 'tanh' and initialisation 'orthogonal', found 'lstm'"):
        model(margin=0.1)
