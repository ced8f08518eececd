"""KL-guided domain adaptation against float64 loops, torch.distributions, SciPy and closed forms."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F

from methods.kl_domain_adaptation.method import KLDomainAdaptation, mixture_divergence, mixture_log_density
from reproduce import attach
from reproduce.method import gaussian_code
from reproduce.method.sites import Site, watch


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def law(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    return seeded(n, d, seed=seed), seeded(n, d, seed=seed + 100).exp()


def log_density_by_loops(value: list[float], means: list[list[float]], deviations: list[list[float]]) -> float:
    total = 0.0
    for mean, deviation in zip(means, deviations, strict=True):
        density = 1.0
        for z, mu, sigma in zip(value, mean, deviation, strict=True):
            density *= math.exp(-((z - mu) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        total += density
    return math.log(total / len(means))


def test_log_densities_are_those_of_loops_and_of_torch_distributions() -> None:
    values, (mean, deviation) = seeded(7, 3, seed=9), law(5, 3, seed=1)
    found = mixture_log_density(values, mean, deviation)
    wanted = [log_density_by_loops(value, mean.tolist(), deviation.tolist()) for value in values.tolist()]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    built_in = MixtureSameFamily(Categorical(torch.ones(5)), Independent(Normal(mean, deviation), 1))
    torch.testing.assert_close(found, built_in.log_prob(values))


def test_the_density_of_one_gaussian_is_scipys() -> None:
    values, (mean, deviation) = seeded(6, 2), law(1, 2, seed=3)
    wanted = scipy.stats.multivariate_normal(mean[0].numpy(), deviation[0].square().diag().numpy()).logpdf(values)
    assert mixture_log_density(values, mean, deviation).tolist() == pytest.approx(wanted, rel=1e-12)


def test_far_values_have_a_density_where_products_vanish() -> None:
    """The nearest Gaussian is all that counts there: exp(-5e7) is no number."""
    values = torch.full((1, 2), 1e4)
    found = mixture_log_density(values, torch.tensor([[0.0, 0.0], [9e3, 9e3]]), torch.ones(2, 2))
    assert found.item() == pytest.approx(-(1e3**2) - math.log(2 * math.pi) - math.log(2), rel=1e-6)


def closed_form(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> float:
    """KL of two diagonal Gaussians: sum of log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2."""
    total = 0.0
    for m_p, s_p, m_q, s_q in zip(*(part[0].tolist() for part in (*p, *q)), strict=True):
        total += math.log(s_q / s_p) + (s_p**2 + (m_p - m_q) ** 2) / (2 * s_q**2) - 0.5
    return total


def test_the_estimate_tends_to_the_closed_form_of_two_gaussians() -> None:
    p = torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.tensor([[0.5, 0.7]], dtype=torch.float64)
    q = torch.tensor([[-0.4, 0.5]], dtype=torch.float64), torch.tensor([[1.1, 0.9]], dtype=torch.float64)
    for n, own, other in ((200_000, p, q), (200_000, q, p)):
        values = own[0] + own[1] * seeded(n, 2)
        logs = mixture_log_density(values, *own) - mixture_log_density(values, *other)
        error = logs.std().item() / math.sqrt(n)
        assert abs(mixture_divergence(values, own, other).item() - closed_form(own, other)) < 4 * error
        assert error < 0.01 * closed_form(own, other), "the check can tell"
    assert abs(closed_form(p, q) - closed_form(q, p)) > 0.1, "and it tells the directions apart"


def test_a_mixture_of_equal_gaussians_is_one_of_them() -> None:
    one, values = law(1, 3, seed=2), seeded(9, 3)
    many = one[0].expand(6, 3), one[1].expand(6, 3)
    torch.testing.assert_close(mixture_log_density(values, *many), mixture_log_density(values, *one))


def test_one_law_against_itself_is_at_no_distance() -> None:
    own = law(8, 3, seed=4)
    assert mixture_divergence(seeded(8, 3), own, own).item() == 0


def test_gradients_are_those_of_differences() -> None:
    values, own, other = seeded(4, 2), law(3, 2, seed=5), law(5, 2, seed=6)
    inputs = tuple(part.requires_grad_() for part in (values, *own, *other))
    assert torch.autograd.gradcheck(lambda z, m_p, s_p, m_q, s_q: mixture_divergence(z, (m_p, s_p), (m_q, s_q)), inputs)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values \(n, d\) need means and deviations \(B, d\), got"):
        mixture_log_density(seeded(4, 3), *law(5, 2, seed=0))
    for means, deviations in ((1, 5), (5, 1), (4, 5)):  # of which torch would stretch the first two
        with pytest.raises(ValueError, match=rf"got \[\(4, 2\), \({means}, 2\), \({deviations}, 2\)\]"):
            mixture_log_density(seeded(4, 2), seeded(means, 2), seeded(deviations, 2).exp())
    with pytest.raises(ValueError, match="floating point"):
        mixture_log_density(torch.ones(4, 2, dtype=torch.int64), *law(5, 2, seed=0))


class Coded(nn.Module):
    """Rows (N, 4) to the parameters of codes (N, 2 d)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.code = Site("gaussian", "nc", (width,))
        with torch.no_grad():
            self.layer.weight.copy_(seeded(width, 4, seed=7))
            self.layer.bias.copy_(seeded(width, seed=8))

    def forward(self, rows: Tensor) -> Tensor:
        return self.code(self.layer(rows))


def penalty_of(method: KLDomainAdaptation, rows: Tensor, source: int | None, seed: int = 0) -> tuple[Tensor, Tensor]:
    model = Coded()
    trace = watch(model, method.recorded_roles)
    trace.source_examples = source
    parameters = model(rows)
    return method.penalty(trace, torch.tensor(0.5), torch.Generator().manual_seed(seed)), parameters.detach()


@pytest.mark.parametrize(("reverse", "forward"), [(0.3, 0.1), (0.3, 0.0), (0.0, 0.7)])
def test_the_penalty_is_both_directions_by_loops(reverse: float, forward: float) -> None:
    """Eq. 14 to 16, with 5 examples of the source and 3 of the target."""
    method = KLDomainAdaptation(reverse_coefficient=reverse, forward_coefficient=forward)
    found, parameters = penalty_of(method, seeded(8, 4).float(), 5)
    means = parameters[:, :3].double().tolist()
    deviations = [[math.log1p(math.exp(raw)) for raw in row] for row in parameters[:, 3:].double().tolist()]
    noise = torch.empty(8, 3).normal_(generator=torch.Generator().manual_seed(0)).double().tolist()
    draws = [[m + s * e for m, s, e in zip(*row, strict=True)] for row in zip(means, deviations, noise, strict=True)]
    source, target = slice(0, 5), slice(5, 8)

    def divergence(p: slice, q: slice) -> float:
        gaps = [
            log_density_by_loops(z, means[p], deviations[p]) - log_density_by_loops(z, means[q], deviations[q])
            for z in draws[p]
        ]
        return sum(gaps) / len(gaps)

    wanted = reverse * divergence(target, source) + forward * divergence(source, target)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_codes_read_both_ways_of_saying_a_deviation() -> None:
    parameters = torch.tensor([[1.0, 2.0, 0.0, -40.0]], requires_grad=True)
    mean, deviation = gaussian_code(parameters)
    assert mean.tolist() == [[1.0, 2.0]]
    assert deviation.tolist()[0] == pytest.approx([math.log(2), 1e-6])
    assert gaussian_code(parameters, "log_variance")[1].tolist()[0] == pytest.approx([1.0, 1e-6])
    wide = torch.tensor([[0.0, 3.0]])
    assert gaussian_code(wide, "log_variance")[1].item() == pytest.approx(math.exp(1.5))
    with pytest.raises(ValueError, match="means and as many deviations, got width 3"):
        gaussian_code(torch.ones(2, 3))


def test_one_domain_is_refused() -> None:
    rows = seeded(8, 4).float()
    with pytest.raises(ValueError, match="needs a batch of two domains"):
        penalty_of(KLDomainAdaptation(), rows, None)
    for source in (0, 8):
        with pytest.raises(ValueError, match="needs examples of both"):
            penalty_of(KLDomainAdaptation(), rows, source)


def test_an_odd_code_and_a_map_are_refused_by_their_site() -> None:
    for model, rows in ((Coded(5), seeded(6, 4).float()), (nn.Sequential(Site("gaussian", "nchw", (2, 3, 3))), None)):
        trace = watch(model)
        trace.source_examples = 3
        model(rows if rows is not None else torch.ones(6, 2, 3, 3, requires_grad=True))
        with pytest.raises(ValueError, match=r"Site '\w+' \(axes .* holds no Gaussian codes"):
            KLDomainAdaptation().penalty(trace, torch.tensor(0.0), torch.Generator())


def test_a_shifted_target_is_drawn_to_the_source() -> None:
    """What the paper promises, on anyone's model: codes of a shifted domain come to have the source's law."""
    torch.manual_seed(0)
    encoder = nn.Linear(4, 4)
    model = nn.Sequential(encoder, nn.Identity())
    source, target = seeded(128, 4).float(), seeded(128, 4, seed=1).float() + torch.tensor([4.0, 0, 0, 0])
    handle = attach(KLDomainAdaptation(reverse_coefficient=1.0), model, {"0": "gaussian"})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def gap() -> float:
        """Of the domains' mean codes, in deviations of a code: one that shrinks everything gains nothing."""
        with torch.no_grad():
            (mean, deviation), (other, _) = gaussian_code(encoder(source)), gaussian_code(encoder(target))
            spread = (mean.var(0) + deviation.square().mean(0)).sqrt()
            return float(((mean.mean(0) - other.mean(0)) / spread).norm())

    before = gap()
    for _ in range(300):
        optimizer.zero_grad()
        model(torch.cat([source, target]))
        handle.penalty(source_examples=128).backward()
        optimizer.step()
    assert before > 0.5
    assert gap() < 0.15 * before
    model(torch.cat([source, target]))
    with pytest.raises(ValueError, match="needs a batch of two domains"):
        handle.penalty()
    handle.remove()
    F.mse_loss(model(source), source).backward()
