"""Oracles for orthogonal regularization: float64 numpy, an exact SVD, values by hand, what the card derives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.orthogonal.method import (
    OrthogonalRegularization,
    as_matrix,
    double_soft_orthogonality,
    draw_start,
    gram_matrix,
    kernels,
    mean_absolute_cosine,
    mutual_coherence,
    off_diagonal_orthogonality,
    scheduled,
    soft_orthogonality,
    srip,
)
from reproduce.method.sites import watch

# Wide, tall and square.
SHAPES = [(6, 2, 3, 3), (20, 7), (9, 9)]
NUMPY_NORMS: dict[str, Callable[[np.ndarray], float]] = {
    "squared_frobenius": lambda d: float((d * d).sum()),
    "frobenius": lambda d: float(np.linalg.norm(d, "fro")),
    "l1": lambda d: float(np.abs(d).sum()),
    "max": lambda d: float(np.abs(d).max()),
    "row_sum": lambda d: float(np.linalg.norm(d, np.inf)),
    "spectral": lambda d: float(np.linalg.norm(d, 2)),
}


def kernel(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) / np.sqrt(np.prod(shape[1:]))


def gram_less_identity(weight: Tensor, gram: str) -> np.ndarray:
    """From the definition: inner products one by one."""
    matrix = weight.detach().double().numpy().reshape(len(weight), -1)
    if gram == "columns" or (gram == "smaller" and matrix.shape[0] > matrix.shape[1]):
        matrix = matrix.T
    return np.array([[(a * b).sum() - float(i == j) for j, b in enumerate(matrix)] for i, a in enumerate(matrix)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gram", ["rows", "columns", "smaller"])
@pytest.mark.parametrize("norm", NUMPY_NORMS)
def test_norms_equal_numpy(shape: tuple[int, ...], gram: str, norm: str) -> None:
    weight = kernel(*shape)
    expected = NUMPY_NORMS[norm](gram_less_identity(weight, gram))
    assert soft_orthogonality(weight, gram, norm).item() == pytest.approx(expected, rel=1e-12)


def test_a_value_by_hand() -> None:
    weight = torch.tensor([[1.0, 0.0], [2.0, 1.0]])  # G = [[1, 2], [2, 5]], D = [[0, 2], [2, 4]]
    found = {norm: soft_orthogonality(weight, norm=norm).item() for norm in NUMPY_NORMS}
    assert found["squared_frobenius"] == 24.0
    assert found["frobenius"] == pytest.approx(24**0.5)
    assert (found["l1"], found["max"], found["row_sum"]) == (8.0, 4.0, 6.0)
    assert found["spectral"] == pytest.approx(2 + 8**0.5)  # eigenvalues 2 +- sqrt(8)
    assert off_diagonal_orthogonality(weight).item() == 8.0
    assert mutual_coherence(weight).item() == 4.0
    cosine = 2 / 5**0.5
    assert mutual_coherence(weight, normalised=True).item() == pytest.approx(cosine)
    assert mean_absolute_cosine(weight).item() == pytest.approx(cosine)


def test_spectral_is_the_largest_deviation_of_squared_singular_values() -> None:
    for shape in SHAPES:
        weight = kernel(*shape)
        squares = np.linalg.svd(as_matrix(weight).numpy(), compute_uv=False) ** 2
        found = soft_orthogonality(weight, "smaller", "spectral").item()
        assert found == pytest.approx(np.abs(squares - 1).max(), rel=1e-12)


def test_orthonormal_kernels_cost_nothing() -> None:
    wide = nn.init.orthogonal_(torch.empty(4, 9, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    for weight in (wide, wide.mT.contiguous(), 0 * wide[:, :4] + torch.eye(4)):
        for norm in NUMPY_NORMS:
            assert soft_orthogonality(weight, "smaller", norm).item() == pytest.approx(0, abs=1e-12)
        assert srip(weight, start="uniform").item() == pytest.approx(0, abs=1e-12)
    assert off_diagonal_orthogonality(3 * wide).item() == pytest.approx(0, abs=1e-12)  # lengths are free
    assert mean_absolute_cosine(3 * wide).item() == pytest.approx(0, abs=1e-12)


def test_an_exactly_orthonormal_kernel_has_a_finite_srip_gradient() -> None:
    for squared in (False, True):
        weight = torch.eye(3, 5, requires_grad=True)
        value = srip(weight, squared=squared)
        value.backward()
        assert value.item() == 0.0
        assert torch.equal(weight.grad, torch.zeros(3, 5))


def keras_regularizer(kernel_of_keras: np.ndarray, mode: str) -> float:
    """OrthogonalRegularizer(factor=1) from its documentation, pair by pair; the kernel is (in, units)."""
    vectors = kernel_of_keras if mode == "rows" else kernel_of_keras.T
    total = 0.0
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            if i != j:
                total += abs(one @ other) / (np.linalg.norm(one) * np.linalg.norm(other))
    return total / (len(vectors) * (len(vectors) - 1))


def test_cosines_equal_the_keras_formula() -> None:
    weight = kernel(5, 7)
    transposed = weight.numpy().T
    assert mean_absolute_cosine(weight, "rows").item() == pytest.approx(keras_regularizer(transposed, "columns"))
    assert mean_absolute_cosine(weight, "columns").item() == pytest.approx(keras_regularizer(transposed, "rows"))
    assert mean_absolute_cosine(100 * weight).item() == pytest.approx(mean_absolute_cosine(weight).item())
    with_zero = weight.clone()
    with_zero[2] = 0
    with_zero.requires_grad_()
    mean_absolute_cosine(with_zero).backward()
    assert with_zero.grad.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_frobenius_of_both_sides_differs_by_a_constant(shape: tuple[int, ...]) -> None:
    """By the definition, each from its own Gram matrix, and not by the identity that the method uses."""
    gradients, values = [], []
    for side in ("rows", "columns"):
        weight = kernel(*shape).requires_grad_()
        matrix = weight.flatten(1) if side == "rows" else weight.flatten(1).mT
        value = (matrix @ matrix.mT - torch.eye(len(matrix))).square().sum()
        value.backward()
        gradients.append(weight.grad)
        values.append(value.item())
        ours = kernel(*shape).requires_grad_()
        soft_orthogonality(ours, side).backward()
        torch.testing.assert_close(ours.grad, weight.grad)
    m, n = shape[0], int(np.prod(shape[1:]))
    assert values[0] - values[1] == pytest.approx(m - n, abs=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1])


def trained(penalty: Callable[[Tensor], Tensor], n_steps: int = 150) -> list[Tensor]:
    """Weights of a small network after Nesterov steps on a task plus the penalty of every kernel."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=generator)
    inputs = torch.randn(64, 12, generator=generator, dtype=torch.float64)
    targets = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(n_steps):
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss = loss + sum(penalty(weight) for _, weight in kernels(model))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def literal_dso(weight: Tensor) -> Tensor:
    """Both Gram matrices of Bansal et al., written out."""
    m, n = weight.shape
    return (weight @ weight.mT - torch.eye(m)).square().sum() + (weight.mT @ weight - torch.eye(n)).square().sum()


def test_dso_trains_exactly_like_twice_so() -> None:
    """In exact arithmetic; here to 1e-6 after 150 steps in float64, against both Gram matrices written out."""
    literal = trained(lambda w: 0.1 * literal_dso(w))
    ours = trained(lambda w: 0.1 * double_soft_orthogonality(w))
    twice = trained(lambda w: 0.2 * soft_orthogonality(w))
    once = trained(lambda w: 0.1 * soft_orthogonality(w))
    for one, two, three, less in zip(literal, ours, twice, once, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(one, three, rtol=1e-6, atol=1e-12)
        assert not torch.allclose(one, less, rtol=1e-3)  # the coefficient does matter


@pytest.mark.parametrize("norm", ["frobenius", "l1", "max", "row_sum", "spectral"])
def test_dso_is_not_twice_so_in_other_norms(norm: str) -> None:
    """For the spectral norm while no squared singular value passes 2: beyond, both sides have the same largest."""
    gradients = []
    for penalty in (lambda w: double_soft_orthogonality(w, norm), lambda w: 2 * soft_orthogonality(w, norm=norm)):
        weight = (0.6 * kernel(6, 10)).requires_grad_()
        penalty(weight).backward()
        gradients.append(weight.grad)
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_srip_on_the_larger_gram_is_flat_until_the_largest_squared_singular_value_passes_two() -> None:
    generator = torch.Generator().manual_seed(0)
    left = nn.init.orthogonal_(torch.empty(4, 4, dtype=torch.float64), generator=generator)
    right = nn.init.orthogonal_(torch.empty(4, 12, dtype=torch.float64), generator=generator)
    rest = torch.tensor([0.2, 0.5, 1.1], dtype=torch.float64)
    for largest, expected in ((1.0, 1.0), (1.9**0.5, 1.0), (2.1**0.5, 1.1), (2.0, 3.0)):
        values = torch.cat([rest, rest.new_tensor([largest])])
        weight = (left @ torch.diag(values) @ right).requires_grad_()
        larger = soft_orthogonality(weight, "columns", "spectral")
        (gradient,) = torch.autograd.grad(larger, weight)
        assert larger.item() == pytest.approx(expected, rel=1e-10)
        assert bool(gradient.norm() < 1e-7) == (largest**2 < 2)
        smaller = soft_orthogonality(weight, "smaller", "spectral")
        assert torch.autograd.grad(smaller, weight)[0].norm() > 0.1


@pytest.mark.parametrize("gram", ["rows", "columns"])
@pytest.mark.parametrize("n_iterations", [1, 2, 5])
def test_srip_equals_the_power_method_on_the_whole_matrix(gram: str, n_iterations: int) -> None:
    weight = kernel(6, 10)
    deviation = gram_less_identity(weight, gram)
    start = draw_start(len(deviation), "normal", torch.Generator().manual_seed(1), dtype=torch.float64)
    vector = np.linalg.matrix_power(deviation, n_iterations) @ start.numpy()
    expected = float(np.linalg.norm(deviation @ vector) / np.linalg.norm(vector))
    assert srip(weight, n_iterations, gram=gram, start=start).item() == pytest.approx(expected, rel=1e-12)
    assert srip(weight, n_iterations, True, gram, start).item() == pytest.approx(expected**2, rel=1e-12)


@pytest.mark.parametrize("shape", [(16, 27), (32, 288), (64, 64), (128, 32), (10, 640)])
def test_one_power_step_finds_half_to_nine_tenths_of_the_spectral_norm(shape: tuple[int, int]) -> None:
    weight, generator = kernel(*shape), torch.Generator().manual_seed(0)
    exact = soft_orthogonality(weight, "smaller", "spectral").item()
    once = np.array([srip(weight, start="uniform", generator=generator).item() for _ in range(50)]) / exact
    often = np.array([srip(weight, 8, generator=generator).item() for _ in range(20)]) / exact
    assert once.max() <= 1 + 1e-12
    assert 0.5 <= once.mean() <= 0.9
    assert often.mean() > 0.92
    assert srip(weight, 2000, generator=generator).item() == pytest.approx(exact, rel=1e-3)


def test_starts_are_drawn_from_the_generator() -> None:
    weight = kernel(6, 10)
    values = [srip(weight, generator=torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert 0 <= draw_start(1000, "uniform", torch.Generator().manual_seed(0)).min() < 0.1


@pytest.mark.parametrize("norm", NUMPY_NORMS)
def test_gradients_away_from_kinks(norm: str) -> None:
    for gram in ("rows", "columns"):
        assert torch.autograd.gradcheck(lambda w, g=gram: soft_orthogonality(w, g, norm), kernel(3, 5).requires_grad_())


def test_gradients_of_the_other_penalties() -> None:
    start = draw_start(3, "normal", torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = (double_soft_orthogonality, mutual_coherence, off_diagonal_orthogonality, mean_absolute_cosine)
    with_options = (
        lambda w: mutual_coherence(w, normalised=True),
        lambda w: srip(w, 2, start=start),
        lambda w: srip(w, 1, squared=True, start=start),
    )
    for penalty in (*plain, *with_options):
        assert torch.autograd.gradcheck(penalty, kernel(3, 5).requires_grad_())


def test_half_precision_is_accumulated_in_float32() -> None:
    weight = kernel(8, 64).to(torch.bfloat16)
    for penalty in (soft_orthogonality, mean_absolute_cosine, lambda w: srip(w, start=torch.ones(8))):
        found = penalty(weight)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(penalty(weight.double()).item(), rel=1e-5)


@pytest.mark.parametrize("penalty", [soft_orthogonality, mean_absolute_cosine, srip, off_diagonal_orthogonality])
@pytest.mark.parametrize("weight", [torch.ones(3), torch.tensor(1.0), torch.ones(0, 3), torch.ones(2, 3).long()])
def test_what_is_no_kernel_is_refused(penalty: Callable[..., Tensor], weight: Tensor) -> None:
    with pytest.raises(ValueError, match="a kernel must be"):
        penalty(weight)


@pytest.mark.parametrize("penalty", [soft_orthogonality, mean_absolute_cosine, srip, off_diagonal_orthogonality])
def test_a_model_in_place_of_a_kernel_is_told_what_gives_its_kernels(penalty: Callable[..., Tensor]) -> None:
    said = r"found Sequential: `for _, weight in kernels\(model\)` gives those of a model"
    with pytest.raises(TypeError, match=said):
        penalty(nn.Sequential(nn.Linear(2, 3)))


def test_unusable_arguments_are_refused_with_what_was_found() -> None:
    with pytest.raises(ValueError, match=r"two axes, found shape \(2, 3, 4\)"):
        gram_matrix(torch.ones(2, 3, 4))
    for single in (mean_absolute_cosine, lambda w: mutual_coherence(w, normalised=True)):
        with pytest.raises(ValueError, match=r"at least two vectors, found 1 in shape \(1, 5\)"):
            single(torch.ones(1, 5))
    with pytest.raises(ValueError, match=r"\(6,\), found \(5,\)"):
        srip(kernel(6, 10), start=torch.ones(5))
    with pytest.raises(ValueError, match="at least one iteration, got 0"):
        srip(kernel(6, 10), 0)
    for call, said in (
        (lambda: srip(kernel(6, 10), start="cauchy"), "got 'cauchy'"),
        (lambda: soft_orthogonality(kernel(6, 10), norm="l7"), "unknown norm 'l7'"),
        (lambda: soft_orthogonality(kernel(6, 10), "both"), "got 'both'"),
        (lambda: OrthogonalRegularization(formula="soft", squared=True), "needs formula 'srip'"),
        (lambda: OrthogonalRegularization(formula="srip", norm="l1"), "needs formula 'soft'"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


class Various(nn.Module):
    """One layer of every sort, a shared one and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 3, bidirectional=True)
        self.gru = nn.GRU(6, 3)
        self.rnn = nn.RNN(3, 3)
        self.conv = nn.Conv2d(1, 2, 3)
        self.deconv = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.linear = nn.Linear(3, 2)
        self.again = nn.Linear(3, 2)
        self.again.weight = self.linear.weight
        self.attention = nn.MultiheadAttention(4, 2)


def test_a_kernel_that_is_not_finite_costs_nan() -> None:
    """Or infinity, and raises nothing, so that the loop can seal the Run as diverged."""
    for value in (float("nan"), float("inf"), 1e30):
        for norm in NUMPY_NORMS:
            weight = torch.full((4, 6), value, requires_grad=True)
            found = soft_orthogonality(weight, norm=norm)
            found.backward()
            assert not found.isfinite(), norm
        assert not srip(torch.full((4, 6), value)).isfinite()


def penalty_of(model: nn.Module, progress: float = 0.0, **fields: object) -> float:
    trace, generator = watch(model), torch.Generator().manual_seed(0)
    return OrthogonalRegularization(**fields).penalty(trace, torch.tensor(progress), generator).item()


def test_penalty_is_the_weighted_sum_over_kernels() -> None:
    model = Various()
    by_formula: dict[str, Callable[[Tensor], Tensor]] = {
        "soft": soft_orthogonality,
        "double_soft": double_soft_orthogonality,
        "mutual_coherence": mutual_coherence,
        "off_diagonal": off_diagonal_orthogonality,
        "cosine": mean_absolute_cosine,
    }
    for formula, penalty in by_formula.items():
        expected = 0.3 * sum(penalty(weight).item() for _, weight in kernels(model, "recurrent"))
        found = penalty_of(model, formula=formula, strength=0.3, layers="recurrent", gram="rows")
        assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"kernel 'head\.weight': cosines need at least two vectors, found 1"):
        penalty_of(nn.ModuleDict({"head": nn.Linear(3, 1)}), formula="cosine", gram="rows")


def test_schedules_follow_the_epochs_of_the_paper_and_of_its_code() -> None:
    """200 epochs; the paper's coefficients are absolute, those of the code are multiplied with the first."""
    epochs = (0, 19, 20, 49, 50, 69, 70, 119, 120, 199)
    progress = torch.tensor([epoch / 200 for epoch in epochs])
    paper = [1e-1, 1e-1, 1e-3, 1e-3, 1e-4, 1e-4, 1e-6, 1e-6, 0, 0]
    code = [1e-2, 1e-2, 1e-5, 1e-5, 1e-6, 1e-6, 1e-8, 1e-8, 0, 0]
    torch.testing.assert_close(0.1 * scheduled(progress, "paper"), torch.tensor(paper))
    torch.testing.assert_close(0.01 * scheduled(progress, "code"), torch.tensor(code))
    assert torch.equal(scheduled(progress, "constant"), torch.ones(10))
    model = nn.Linear(5, 4)
    start = penalty_of(model, strength=0.1, schedule="paper")
    assert penalty_of(model, 0.3, strength=0.1, schedule="paper") == pytest.approx(1e-3 * start)
    assert penalty_of(model, 0.6, strength=0.1, schedule="paper") == 0.0


def test_a_fixed_start_is_drawn_once_and_kept_in_the_state() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    fields = {"formula": "srip", "redraw": False, "start": "uniform", "strength": 1.0}
    with pytest.raises(ValueError, match="needs `prepare`"):
        penalty_of(model, **fields)
    method, generator = OrthogonalRegularization(**fields), torch.Generator().manual_seed(3)
    method.prepare(model, generator)
    assert {"srip_start_0", "srip_start_1"} <= model.state_dict().keys()
    state = generator.get_state()
    values = [method.penalty(watch(model), torch.tensor(0.0), generator).item() for _ in range(2)]
    assert torch.equal(generator.get_state(), state)
    starts = (model.srip_start_0, model.srip_start_1)
    expected = sum(srip(layer.weight, start=start).item() for layer, start in zip(model, starts, strict=True))
    assert values == pytest.approx([expected] * 2)


def test_training_on_the_penalty_alone_makes_kernels_orthonormal() -> None:
    for fields in ({"formula": "soft"}, {"formula": "srip", "n_iterations": 2, "squared": True}):
        layer = nn.Linear(12, 6)
        method, generator, trace = (
            OrthogonalRegularization(strength=1.0, **fields),
            torch.Generator().manual_seed(0),
            watch(layer),
        )
        before = soft_orthogonality(layer.weight).item()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            method.penalty(trace, torch.tensor(0.0), generator).backward()
            optimizer.step()
        assert soft_orthogonality(layer.weight).item() < 1e-3 * before


def test_strength_zero_is_exactly_zero_whatever_the_weights() -> None:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, float("nan"))
    assert penalty_of(layer, strength=0.0) == 0.0


@pytest.mark.parametrize("scale", [3e12, 1e15])
@pytest.mark.parametrize(
    "term",
    [
        lambda weight: srip(weight, start=torch.ones(6, dtype=weight.dtype)),
        lambda weight: srip(weight, 3, start=torch.ones(6, dtype=weight.dtype)),
        lambda weight: soft_orthogonality(weight, norm="frobenius"),
        lambda weight: soft_orthogonality(weight, norm="spectral"),
        lambda weight: soft_orthogonality(weight, norm="l1"),
        lambda weight: double_soft_orthogonality(weight, norm="frobenius"),
    ],
)
def test_large_kernels_cost_and_pull_as_in_double_precision(term: Callable[[Tensor], Tensor], scale: float) -> None:
    """Entries of the Gram matrix are numbers of float32 here, and their squares are none."""
    weight = scale * torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    single, double = weight.clone().requires_grad_(), weight.double().requires_grad_()
    found, expected = term(single), term(double)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0.0)
    (pull,), (expected_pull,) = torch.autograd.grad(found, single), torch.autograd.grad(expected, double)
    torch.testing.assert_close(pull.double(), expected_pull, rtol=1e-3, atol=1e-3 * float(expected_pull.abs().max()))


@pytest.mark.parametrize("shape", [(6, 6), (16, 9), (8, 3, 3, 3)])
def test_ordinary_kernels_cost_what_torchs_norms_say_to_the_bit(shape: tuple[int, ...]) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    rows = weight.flatten(1)
    deviation = rows @ rows.mT - torch.eye(len(rows))
    assert torch.equal(soft_orthogonality(weight, norm="frobenius"), torch.linalg.vector_norm(deviation))
    start = torch.randn(len(rows), generator=torch.Generator().manual_seed(2))
    product = rows @ (rows.mT @ start) - start
    product = product / torch.linalg.vector_norm(product)
    product = rows @ (rows.mT @ product) - product
    assert torch.equal(srip(weight, gram="rows", start=start), torch.linalg.vector_norm(product))
