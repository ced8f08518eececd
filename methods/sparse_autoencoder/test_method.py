"""Oracles for sparse codes: values by hand, loops, closed forms, and what resampling touches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from methods.sparse_autoencoder.method import (
    SparseAutoencoder,
    ce_loss_score,
    dead_fraction,
    explained_variance,
    feature_density,
    fvu,
    kl_sparsity,
    l0,
    l1_code_penalty,
    relative_reconstruction_bias,
)
from reproduce import models
from reproduce.method.sites import Site, Trace, watch
from reproduce.models import Sizes


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def autoencoder(d_in: int = 5, d_sae: int = 7, seed: int = 0, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return models.build("autoencoder", {"d_sae": d_sae, **options}, Sizes((d_in,), d_in), generator, None)


def recorded(model: nn.Module, inputs: Tensor) -> Trace:
    trace = watch(model.train())
    model(inputs)
    return trace


def penalty(trace: Trace, progress: float = 1.0, **fields: Any) -> Tensor:
    return SparseAutoencoder(**fields).penalty(trace, torch.tensor(progress), torch.Generator())


CODE = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 4.0]])


def test_l1_by_hand() -> None:
    assert l1_code_penalty(CODE).item() == 3.5
    assert l1_code_penalty(CODE, reduction="batch_sum").item() == 7.0
    decoder = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.5]])  # rows of norm 5, 1, 0.5
    assert l1_code_penalty(CODE, decoder).item() == (5 + 1 + 2) / 2


def test_per_example_does_not_see_the_batch_size_and_batch_sum_does() -> None:
    code, twice = seeded(6, 4), seeded(6, 4).repeat(2, 1)
    torch.testing.assert_close(l1_code_penalty(twice), l1_code_penalty(code))
    torch.testing.assert_close(
        l1_code_penalty(twice, reduction="batch_sum"), 2 * l1_code_penalty(code, reduction="batch_sum")
    )
    torch.testing.assert_close(l1_code_penalty(code, reduction="batch_sum"), 6 * l1_code_penalty(code))


def test_gradients() -> None:
    decoder = seeded(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(l1_code_penalty, (seeded(5, 4).requires_grad_(), decoder))
    assert torch.autograd.gradcheck(lambda code: kl_sparsity(code, 0.2), seeded(5, 4).sigmoid().requires_grad_())


def test_the_norm_weighted_loss_is_blind_to_where_the_scale_sits() -> None:
    model = autoencoder(seed=1).double()
    inputs = seeded(9, 5)

    def whole_loss() -> float:
        code = model.encode(inputs)
        error = (model.decode(code) - inputs).square().sum(1).mean()
        return (error + 0.3 * l1_code_penalty(code, model.W_dec)).item()

    before = whole_loss()
    scale = torch.tensor([0.1, 2.0, 1.0, 7.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    with torch.no_grad():
        model.W_enc *= scale
        model.b_enc *= scale
        model.W_dec /= scale[:, None]
    assert whole_loss() == pytest.approx(before, rel=1e-12)


def test_kl_is_that_of_bernoulli_laws() -> None:
    code = seeded(8, 5).sigmoid()
    means = code.mean(0)
    expected = kl_divergence(Bernoulli(torch.full_like(means, 0.1)), Bernoulli(means)).sum()
    torch.testing.assert_close(kl_sparsity(code, 0.1), expected)
    assert kl_sparsity(torch.full((4, 3), 0.25), 0.25).item() == 0.0


def test_the_gradient_of_kl_is_the_term_in_the_lecture_notes() -> None:
    code = seeded(8, 5).sigmoid().requires_grad_()
    kl_sparsity(code, 0.1).backward()
    mean = code.detach().mean(0)
    torch.testing.assert_close(code.grad, ((-0.1 / mean + 0.9 / (1 - mean)) / 8).expand(8, 5))


def test_a_silent_latent_costs_a_finite_amount() -> None:
    code = torch.tensor([[0.0, 0.5], [0.0, 0.5]], requires_grad=True)
    found = kl_sparsity(code, 0.1)
    found.backward()
    assert found.isfinite()
    assert code.grad.isfinite().all()


def test_counts_by_hand() -> None:
    assert l0(CODE).item() == 1.5
    assert feature_density(CODE).tolist() == [0.5, 0.0, 1.0]
    assert dead_fraction(CODE).item() == pytest.approx(1 / 3)
    assert l0(CODE.reshape(2, 1, 3)).item() == 1.5


def test_unexplained_variance_of_the_mean_and_of_the_inputs() -> None:
    inputs = seeded(50, 3) + 100.0  # far from zero: variance is about the mean, not about zero
    mean = inputs.mean(0).expand_as(inputs)
    assert fvu(inputs, mean).item() == pytest.approx(1.0)
    assert explained_variance(inputs, mean).item() == pytest.approx(0.0, abs=1e-9)
    assert fvu(inputs, inputs).item() == 0.0
    assert fvu(inputs, mean + 1).item() > 1  # a constant offset is an error too


def test_unexplained_variance_is_the_loop_over_numbers() -> None:
    inputs, output = seeded(6, 2), seeded(6, 2, seed=1)
    rows, outputs = inputs.tolist(), output.tolist()
    means = [sum(row[j] for row in rows) / 6 for j in range(2)]
    residual = sum((rows[i][j] - outputs[i][j]) ** 2 for i in range(6) for j in range(2))
    variance = sum((rows[i][j] - means[j]) ** 2 for i in range(6) for j in range(2))
    assert fvu(inputs, output).item() == pytest.approx(residual / variance)


def test_bias_of_a_shrunk_reconstruction_is_its_factor() -> None:
    inputs = seeded(20, 4)
    for factor in (0.5, 1.0, 2.0):
        assert relative_reconstruction_bias(inputs, factor * inputs).item() == pytest.approx(factor)


def test_loss_score_of_no_change_and_of_the_ablation() -> None:
    assert ce_loss_score(4.0, 4.0, 9.0) == 1.0
    assert ce_loss_score(4.0, 9.0, 9.0) == 0.0
    assert ce_loss_score(4.0, 5.0, 9.0) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"both 4\.0"):
        ce_loss_score(4.0, 5.0, 4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: l1_code_penalty(torch.zeros(0, 3)), r"code: .* not empty, got shape \(0, 3\)"),
        (lambda: l1_code_penalty(torch.ones(2, 3, dtype=torch.int)), "got torch.int32"),
        (lambda: l1_code_penalty(CODE, torch.ones(4, 2)), r"d_sae 3, got \(4, 2\)"),
        (lambda: l1_code_penalty(CODE, reduction="mean"), "got 'mean'"),
        (lambda: kl_sparsity(CODE, 1.0), r"got 1\.0"),
        (lambda: fvu(CODE, CODE[:1]), r"\(2, 3\) and \(1, 3\)"),
        (lambda: relative_reconstruction_bias(torch.tensor(1.0), torch.tensor(1.0)), "not empty"),
        (lambda: SparseAutoencoder(l1_coefficient=-1.0), "l1_coefficient"),
        (lambda: SparseAutoencoder(resample_every=100, sites="post"), "sites = 'code', got 'post'"),
    ],
)
def test_what_cannot_be_used_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_penalty_reads_the_code_and_is_weighted_and_warmed_up() -> None:
    model, inputs = autoencoder(), seeded(9, 5).float()
    trace = recorded(model, inputs)
    expected = 0.3 * l1_code_penalty(model.encode(inputs))
    torch.testing.assert_close(penalty(trace, l1_coefficient=0.3), expected)
    torch.testing.assert_close(penalty(trace, 0.05, l1_coefficient=0.3, warm_up=0.1), expected / 2)
    torch.testing.assert_close(penalty(trace, 0.7, l1_coefficient=0.3, warm_up=0.1), expected)
    torch.testing.assert_close(penalty(trace, l1_coefficient=0.3, reduction="batch_sum"), 9 * expected)
    assert penalty(trace, l1_coefficient=0.0).item() == 0.0


def test_both_penalties_add_up() -> None:
    model = autoencoder(activation="sigmoid")
    inputs = seeded(9, 5).float()
    trace = recorded(model, inputs)
    code = model.encode(inputs)
    found = penalty(trace, l1_coefficient=0.3, kl_coefficient=2.0, target_density=0.1)
    torch.testing.assert_close(found, 0.3 * l1_code_penalty(code) + 2 * kl_sparsity(code, 0.1))


def test_norm_weighting_reads_the_decoder_beside_the_code() -> None:
    model, inputs = autoencoder(initial_norm=0.1), seeded(9, 5).float()
    found = penalty(recorded(model, inputs), norm_weighted=True)
    torch.testing.assert_close(found, 0.1 * l1_code_penalty(model.encode(inputs)))
    unit = autoencoder(decoder="unit_norm", initial_norm=0.1)  # reads as unit rows, so weighting changes nothing
    torch.testing.assert_close(
        penalty(recorded(unit, inputs), norm_weighted=True), l1_code_penalty(unit.encode(inputs))
    )


class _Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 7)
        self.code = Site("code", "nc", (7,))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.code(self.layer(inputs).relu())


def test_a_model_without_the_weights_is_refused() -> None:
    trace = recorded(_Bare(), torch.ones(2, 5))
    with pytest.raises(ValueError, match="Site 'code': norm_weighted needs W_dec"):
        penalty(trace, norm_weighted=True)
    with pytest.raises(ValueError, match="Site 'code': resampling needs W_dec and b_enc"):
        SparseAutoencoder(resample_every=4).prepare(_Bare(), torch.Generator())
    with pytest.raises(ValueError, match="no 'code' Site"):
        SparseAutoencoder(resample_every=4).prepare(nn.Linear(2, 2), torch.Generator())


class _Session:
    """An autoencoder whose latents 1 and 4 never fire, under Adam or SGD with momentum."""

    def __init__(self, optimizer: str = "Adam", every: int = 4, until: float = 1.0, **options: Any) -> None:
        self.method = SparseAutoencoder(resample_every=every, resample_until=until)
        self.model = autoencoder(**options)
        self.generator = torch.Generator().manual_seed(3)
        self.method.prepare(self.model, self.generator)
        with torch.no_grad():
            self.model.b_enc[[1, 4]] = -1e4
            self.model.b_enc[[0, 2, 3, 5, 6]] = 10.0  # and the others always do
        self.trace = watch(self.model.train())
        kind, momentum = getattr(torch.optim, optimizer), {"momentum": 0.9} if optimizer == "SGD" else {}
        self.optimizer = kind(self.model.parameters(), lr=1e-3, **momentum)
        self.inputs = seeded(16, 5).float()

    def step(self, progress: float = 0.5) -> None:
        self.trace.clear()
        self.optimizer.zero_grad()
        (self.model(self.inputs) - self.inputs).square().sum(1).mean().backward()
        self.optimizer.step()
        self.before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.moments = {p: {k: v.clone() for k, v in s.items()} for p, s in self.optimizer.state.items()}
        self.method.after_step(self.model, self.optimizer, torch.tensor(progress), self.generator)

    def changed(self, name: str, axis: int = 0) -> list[int]:
        """Latents whose part of a weight is another than before `after_step`."""
        other = (self.before[name] != self.model.state_dict()[name]).movedim(axis, 0).reshape(7, -1).any(1)
        return other.nonzero().flatten().tolist()


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_resampling_rewrites_dead_latents_and_no_other(optimizer: str) -> None:
    session = _Session(optimizer)
    for _ in range(3):
        session.step()
        assert session.changed("W_dec") == []
    session.step()
    for name, axis in (("W_dec", 0), ("W_enc", 1), ("b_enc", 0)):
        assert session.changed(name, axis) == [1, 4]
    model = session.model
    assert model.b_enc[[1, 4]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(model.W_dec[[1, 4]].norm(dim=1), torch.ones(2))
    alive = model.W_enc[:, [0, 2, 3, 5, 6]].norm(dim=0).mean()
    torch.testing.assert_close(model.W_enc[:, [1, 4]].norm(dim=0), 0.2 * alive.expand(2))
    centred = nn.functional.normalize(session.inputs - model.b_dec, dim=1)
    assert (model.W_dec[[1, 4]] @ centred.t()).max(1).values.min() > 1 - 1e-5  # each points at some input
    for weight, axis in ((model.W_dec, 0), (model.b_enc, 0), (model.W_enc, 1)):
        moments = {name: value for name, value in session.optimizer.state[weight].items() if value.dim()}
        assert moments
        for name, moment in moments.items():
            new, old = moment.movedim(axis, 0), session.moments[weight][name].movedim(axis, 0)
            assert new[[1, 4]].count_nonzero() == 0
            assert torch.equal(new[[0, 2, 3, 5, 6]], old[[0, 2, 3, 5, 6]])
            assert old[[0, 2, 3, 5, 6]].count_nonzero() > 0


def test_a_resampled_latent_gets_time_and_a_late_one_stays_dead() -> None:
    session = _Session()
    for _ in range(4):
        session.step()
    assert session.model.resampling.idle[[1, 4]].tolist() == [0, 0]
    late = _Session(until=0.4)
    for _ in range(4):
        late.step(progress=0.5)
    assert late.changed("W_dec") == []
    assert late.model.resampling.idle[[1, 4]].tolist() == [4, 4]


def test_resampling_aims_at_the_input_with_the_largest_loss() -> None:
    session = _Session(every=2)
    session.inputs[3] *= 1e4
    session.step()
    session.step()
    target = nn.functional.normalize(session.inputs[3] - session.model.b_dec, dim=0)
    torch.testing.assert_close(session.model.W_dec[[1, 4]], target.expand(2, 5))


@pytest.mark.parametrize("options", [{"decoder": "unit_norm"}, {"decoder": "unit_norm", "tied": True}])
def test_resampling_finds_the_weights_behind_unit_rows_and_ties(options: dict[str, Any]) -> None:
    session = _Session(**options)
    for _ in range(4):
        session.step()
    assert session.changed("parametrizations.W_dec.original") == [1, 4]
    stored = session.model.parametrizations.W_dec.original
    assert session.optimizer.state[stored]["exp_avg"][[1, 4]].count_nonzero() == 0


def test_resampling_continues_from_a_state_dict() -> None:
    session, other = _Session(), _Session()
    for _ in range(3):
        session.step()
    other.model.load_state_dict(session.model.state_dict())
    assert other.model.resampling.steps.item() == 3
    other.step()
    assert other.changed("W_dec") == [1, 4]


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags or func is torch.ops.aten.nonzero.default:
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_resampling_never_waits_for_the_device() -> None:
    session = _Session(every=2)
    session.step()
    session.trace.clear()
    session.model(session.inputs)
    with _NoWaiting():
        with pytest.raises(RuntimeError, match="waits"):
            torch.ones(1).item()
        session.method.after_step(session.model, session.optimizer, torch.tensor(0.5), session.generator)
    assert session.changed("W_dec") == [1, 4]
