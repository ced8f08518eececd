"""Recurrent batch normalization (Cooijmans et al., ICLR 2017): an LSTM whose statistics are those of each time step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from methods.recurrent_batchnorm.calls import OneCall
from reproduce.method import (
    Method,
    NonNegative,
    Positive,
    PositiveCount,
    device_of,
    dtype_of,
    in_float32,
    is_in_backward,
)

Terms = Literal["all", "gates", "input"]
Term = Literal["input", "hidden", "cell"]

_NORMALIZED: dict[Terms, tuple[Term, ...]] = {
    "all": ("input", "hidden", "cell"),
    "gates": ("input", "hidden"),
    "input": ("input",),
}


class Moments(NamedTuple):
    """Mean and biased variance of each unit at each time step, both (T, units)."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Normalization:
    """``y = scale (x - mean) / sqrt(variance + eps) + shift`` of one term: scale and shift (units,), one for all steps.

    Without ``population`` the moments are those of the mini-batch.
    """

    scale: Tensor
    shift: Tensor | None = None
    population: Moments | None = None
    eps: float = 1e-5


@dataclass
class _Steps:
    """A normalization that is applied step by step, and the moments that it met."""

    rule: Normalization
    bias: Tensor | None  # what is added beside the rule's own shift
    means: list[Tensor] = field(default_factory=list)
    inverse_deviations: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        shifts = [part for part in (self.rule.shift, self.bias) if part is not None]
        self.shift = sum(shifts[1:], shifts[0]) if shifts else torch.zeros_like(self.rule.scale)
        if self.rule.population is not None:
            mean, variance = self.rule.population
            factors = self.rule.scale * torch.rsqrt(variance + self.rule.eps)
            self.factors, self.offsets = factors.unbind(), (self.shift - mean * factors).unbind()

    def __call__(self, value: Tensor, step: int) -> Tensor:
        if self.rule.population is not None:
            return torch.addcmul(self.offsets[step], value, self.factors[step])
        normalized, mean, inverse_deviation = torch.native_batch_norm(
            value, self.rule.scale, self.shift, None, None, True, 0.0, self.rule.eps
        )
        self.means.append(mean.detach())
        self.inverse_deviations.append(inverse_deviation.detach())
        return normalized

    def moments(self) -> Moments:
        """Of the steps so far."""
        if self.rule.population is not None:
            return self.rule.population
        variance = torch.stack(self.inverse_deviations).pow(-2) - self.rule.eps
        return Moments(torch.stack(self.means), variance.clamp_min(0))


def batch_normalized_lstm(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    normalizations: Mapping[Term, Normalization],
    moments: dict[Term, Moments] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of an LSTM with recurrent batch normalization (section 3): outputs (T, N, H), h_T and c_T (N, H).

    ``(i, f, g, o)_t = BN(W_h h_{t-1}) + BN(W_x x_t) + b``, ``c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)``,
    ``h_t = sigmoid(o) tanh(BN(c_t))``; what flows on to the next step is c_t itself. Each BN standardizes a unit over
    the mini-batch at one time step, or with population moments of that step. Gates and cell are computed in float32
    at least; what is returned has the type of the matrix products.

    Args:
        inputs: (T, N, C).
        hidden: h_0, (N, H).
        cell: c_0, (N, H).
        weight_ih: W_x, (4 H, C), in torch's order of gates.
        weight_hh: W_h, (4 H, H).
        bias: b, (4 H,), or None.
        normalizations: of the terms "input", "hidden" and "cell"; a term that is not named stays as it is.
        moments: is filled with those that each normalized term met, without gradient.

    Raises:
        ValueError: no time step; moments of a mini-batch of fewer than two examples, or of other steps than there are.
    """
    _check(inputs, normalizations)
    projected = F.linear(inputs, weight_ih)
    dtype = projected.dtype
    from_input = in_float32(projected)
    bias = None if bias is None else bias.to(from_input.dtype)
    shifted = next((name for name in ("hidden", "input") if name in normalizations), None)  # saves an addition a step
    steps = {name: _Steps(rule, bias if name == shifted else None) for name, rule in normalizations.items()}
    if bias is not None and shifted is None:
        from_input = from_input + bias
    hidden, cell = hidden.to(dtype), cell.to(from_input.dtype)
    outputs = []
    for step, from_inputs in enumerate(from_input.unbind()):
        from_hidden = in_float32(F.linear(hidden, weight_hh))
        from_inputs = steps["input"](from_inputs, step) if "input" in steps else from_inputs
        from_hidden = steps["hidden"](from_hidden, step) if "hidden" in steps else from_hidden
        i, f, g, o = (from_inputs + from_hidden).chunk(4, -1)
        cell = torch.addcmul(f.sigmoid() * cell, i.sigmoid(), g.tanh())
        shown = steps["cell"](cell, step) if "cell" in steps else cell
        hidden = (o.sigmoid() * shown.tanh()).to(dtype)
        outputs.append(hidden)
    if moments is not None:
        moments.update({name: rule.moments() for name, rule in steps.items()})
    return torch.stack(outputs), hidden, cell.to(dtype)


def _check(inputs: Tensor, normalizations: Mapping[Term, Normalization]) -> None:
    if inputs.dim() != 3 or len(inputs) == 0:
        raise ValueError(
            f"an LSTM reads inputs (time, batch, features) of at least one step, got {tuple(inputs.shape)}"
        )
    for name, rule in normalizations.items():
        if rule.population is None and inputs.shape[1] < 2:
            raise ValueError(
                f"recurrent batch normalization needs a mini-batch of at least 2 examples, got {inputs.shape[1]}: "
                "evaluate with model.eval(), or drop the last batch of an epoch"
            )
        if rule.population is not None and len(rule.population.mean) != len(inputs):
            raise ValueError(
                f"{name}: population moments of {len(rule.population.mean)} steps for inputs of {len(inputs)}"
            )


class StepNormalization(nn.Module):
    """Scale, shift and population moments of one term: moments of each of the first ``steps`` time steps.

    Later steps share the last that training has reached, in training and in evaluation. ``momentum`` is the weight of
    the newest mini-batch in the moments, or None for the mean of all mini-batches so far. They begin with mean 0 and
    variance 1, as in the authors' code.
    """

    running_mean: Tensor
    running_var: Tensor
    updates: Tensor

    def __init__(
        self, units: int, steps: int, scale: float, has_shift: bool, eps: float, momentum: float | None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.full((units,), scale))
        self.bias = nn.Parameter(torch.zeros(units)) if has_shift else None
        self.register_buffer("running_mean", torch.zeros(steps, units))
        self.register_buffer("running_var", torch.ones(steps, units))
        self.register_buffer("updates", torch.zeros(steps, dtype=torch.int64))  # mini-batches that reached each step

    def rule(self, steps: int) -> Normalization:
        """With the moments of the mini-batch while training, else with the population's of ``steps`` time steps."""
        return Normalization(self.weight, self.bias, None if self.training else self.population(steps), self.eps)

    def population(self, steps: int) -> Moments:
        """Moments of the first ``steps`` time steps, (steps, units) each."""
        last = (self.updates > 0).sum() - 1  # a tensor: no wait for the device
        index = torch.arange(steps, device=last.device).minimum(last).clamp_min(0)
        return Moments(self.running_mean.index_select(0, index), self.running_var.index_select(0, index))

    @torch.no_grad()
    def update(self, moments: Moments) -> None:
        """Let the moments of a mini-batch enter the population's, those of all steps beyond the last as their mean."""
        count = len(self.updates)
        self.updates[: len(moments.mean)].add_(1)
        for running, newest in zip((self.running_mean, self.running_var), moments, strict=True):
            if len(newest) > count:
                newest = torch.cat([newest[: count - 1], newest[count - 1 :].mean(0, keepdim=True)])
            place = running[: len(newest)]
            newest = newest.to(place.dtype)
            if self.momentum is None:
                place.add_((newest - place) / self.updates[: len(newest)].unsqueeze(1))
            else:
                place.lerp_(newest, self.momentum)

    def extra_repr(self) -> str:
        steps, units = self.running_mean.shape
        return f"{units} units, {steps} steps, eps={self.eps}, momentum={self.momentum}"


class LayerNormalizations(nn.Module):
    """What one layer and direction of an LSTM has beside its weights: `StepNormalization` of its terms, and its start.

    The state in which a sequence begins where the caller gives none is zero, or learned (``initial_hidden`` and
    ``initial_cell``); while training, the hidden state has Gaussian noise of deviation ``noise`` on it.
    """

    def __init__(
        self, options: RecurrentBatchNorm, units: int, generator: torch.Generator, name: str, calls: OneCall
    ) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        widths: dict[Term, int] = {"input": 4 * units, "hidden": 4 * units, "cell": units}
        names = _NORMALIZED[options.terms]
        # No shift for the sums of the gates: their bias covers both (section 3).
        self.terms = nn.ModuleDict(
            {
                name: StepNormalization(
                    widths[name], options.steps, options.initial_scale, name == "cell", options.eps, options.momentum
                )
                for name in names
            }
        )
        learned = options.learn_initial_state
        self.initial_hidden = nn.Parameter(torch.zeros(units)) if learned else None
        self.initial_cell = nn.Parameter(torch.zeros(units)) if learned else None
        self.noise = options.initial_state_noise
        self.generator = generator if self.noise else None

    def initial_state(self, inputs: Tensor, units: int) -> tuple[Tensor, Tensor]:
        """h_0 and c_0, both (N, H), for inputs (T, N, C).

        Raises:
            ValueError: noise is to be drawn again in a backward pass, where it would be another.
        """
        zeros = inputs.new_zeros(inputs.shape[1], units)
        hidden = zeros if self.initial_hidden is None else zeros + self.initial_hidden
        cell = zeros if self.initial_cell is None else zeros + self.initial_cell
        if self.training and self.generator is not None:
            if is_in_backward():
                raise ValueError(
                    "recurrent batch normalization cannot draw initial_state_noise a second time, as its LSTM is "
                    "computed again in a backward pass: leave the LSTM out of checkpoint(), or the noise at 0"
                )
            drawn = torch.empty_like(hidden).normal_(generator=self.generator)
            hidden = hidden + self.noise * drawn
        return hidden, cell

    def run(
        self, inputs: Tensor, state: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`batch_normalized_lstm` with the own normalizations; while training, they take up the moments it met.

        Raises:
            ValueError: a second call in one forward pass of the model, whose first step would count as the first again.
        """
        self.calls.note(self, self.name)
        terms: Any = dict(self.terms.items())
        rules = {name: term.rule(len(inputs)) for name, term in terms.items()}
        met: dict[Term, Moments] = {}
        weight_ih, weight_hh, bias = weights
        found = batch_normalized_lstm(inputs, *state, weight_ih, weight_hh, bias, rules, met)
        if self.training:
            for name, term in terms.items():
                term.update(met[name])
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerNormalizations:
        if self.generator is not None:
            memo[id(self.generator)] = self.generator  # shared: a run has one stream
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


class BatchNormalizedLSTM(nn.LSTM):
    """An `nn.LSTM` that normalizes: same weights, same arguments, same results' shapes.

    `RecurrentBatchNorm.prepare` makes one of a model's own LSTM, which keeps its weights, its hooks and its place.
    """

    normalizations: nn.ModuleList

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        """As `nn.LSTM`, but for packed sequences.

        Raises:
            ValueError: a packed sequence; while training, a mini-batch of fewer than two examples; a second call in one
                forward pass of the model.
        """
        if isinstance(input, PackedSequence):
            raise ValueError(
                "recurrent batch normalization needs padded sequences: the ends of a packed one have mini-batches of "
                "their own size; pad_packed_sequence() gives one"
            )
        is_single = input.dim() == 2
        if is_single:
            input = input.unsqueeze(0 if self.batch_first else 1)
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        if hx is not None:
            self.check_forward_args(input, hx, None)
        else:
            self.check_input(input, None)
        output, hidden, cell = self._layers(input.transpose(0, 1) if self.batch_first else input, hx)
        output = output.transpose(0, 1) if self.batch_first else output
        if is_single:
            return output.squeeze(0 if self.batch_first else 1), (hidden.squeeze(1), cell.squeeze(1))
        return output, (hidden, cell)

    def _layers(self, value: Tensor, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (T, N, C) through all layers."""
        ways = 2 if self.bidirectional else 1
        ends: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            outputs = []
            for way in range(ways):
                index = layer * ways + way
                own: Any = self.normalizations[index]
                read = value.flip(0) if way else value
                if given is None:
                    start = own.initial_state(read, self.hidden_size)
                else:
                    start = given[0][index], given[1][index]
                output, *end = own.run(read, start, self._weights(layer, way))
                outputs.append(output.flip(0) if way else output)
                ends.append(end)
            value = outputs[0] if ways == 1 else torch.cat(outputs, -1)
            if self.dropout and layer < self.num_layers - 1:
                value = F.dropout(value, self.dropout, self.training)
        return value, torch.stack([hidden for hidden, _ in ends]), torch.stack([cell for _, cell in ends])

    def _weights(self, layer: int, way: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """W_x, W_h, and the sum of both bias vectors in float32 at least."""
        end = f"l{layer}" + ("_reverse" if way else "")
        bias = in_float32(getattr(self, f"bias_ih_{end}")) + getattr(self, f"bias_hh_{end}") if self.bias else None
        return getattr(self, f"weight_ih_{end}"), getattr(self, f"weight_hh_{end}"), bias


class RecurrentBatchNorm(Method):
    """Every `nn.LSTM` of the model becomes a `BatchNormalizedLSTM`, layer by layer and direction by direction.

    While training, each time step is standardized by the moments of the mini-batch at that step, counted from the
    beginning of the sequence or window that the LSTM is given, also where it goes on from a state; in evaluation, by
    the population's at that step. Nothing is added to the loss.
    """

    # "all": section 3. "gates": without the cell. "input": the input term alone (Laurent et al. 2016, by frame).
    terms: Terms = "all"
    steps: PositiveCount = 100  # T_max; the length of its sequences of characters
    initial_scale: Positive = 0.1  # gamma at the start
    # Bias of the forget gate at the start, all others then being 0: the authors' code. None: the model's own biases.
    forget_bias: Annotated[float, Field(allow_inf_nan=False)] | None = 1.0
    eps: Positive = 1e-5  # the authors' code; the paper gives no value
    # Weight of the newest mini-batch in population moments: the authors' code. None: the mean of all mini-batches.
    momentum: Annotated[float, Field(gt=0, le=1)] | None = 0.05
    learn_initial_state: bool = False  # h_0 and c_0 where the caller gives none: learned in the paper
    initial_state_noise: NonNegative = 0.0  # on that h_0 while training; 0.1 in the authors' code for sequential MNIST

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Make a `BatchNormalizedLSTM` of every LSTM, or of none.

        Raises:
            ValueError: a model without an `nn.LSTM`; an LSTM that is normalized already, is a class of its own, has
                projections, or lacks the biases that ``forget_bias`` is for.
        """
        found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.LSTM)]
        if not found:
            other = sorted({type(m).__name__ for m in model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)})
            raise ValueError(
                f"recurrent batch normalization needs an nn.LSTM, and the model has {' and '.join(other) or 'none'}"
            )
        for name, lstm in found:
            self._check(name, lstm)
        calls = OneCall()
        calls.hook(model)
        for name, lstm in found:
            self._normalize(name, lstm, generator, calls)

    def _check(self, name: str, lstm: nn.LSTM) -> None:
        named = f"LSTM {name!r}" if name else "this LSTM"
        if isinstance(lstm, BatchNormalizedLSTM):
            raise ValueError(f"{named} is normalized already, and needs no second normalization")
        if type(lstm) is not nn.LSTM:
            raise ValueError(
                f"{named} is a {type(lstm).__name__}, and recurrent batch normalization needs nn.LSTM itself: register "
                "parametrizations after it"
            )
        if lstm.proj_size:
            raise ValueError(f"{named} has proj_size {lstm.proj_size}, and recurrent batch normalization needs 0")
        if not lstm.bias and self.forget_bias is not None:
            raise ValueError(f"{named} has no biases, and forget_bias {self.forget_bias} needs them: give None")

    def _normalize(self, name: str, lstm: nn.LSTM, generator: torch.Generator, calls: OneCall) -> None:
        device, dtype = device_of(lstm), dtype_of(lstm)
        count = lstm.num_layers * (2 if lstm.bidirectional else 1)
        made = [LayerNormalizations(self, lstm.hidden_size, generator, name, calls) for _ in range(count)]
        lstm.__class__ = BatchNormalizedLSTM
        lstm.normalizations = nn.ModuleList(made).to(device, dtype).train(lstm.training)
        if self.forget_bias is not None:
            for bias, other in _biases(lstm):
                nn.init.zeros_(bias)
                nn.init.zeros_(other)
                nn.init.constant_(bias.detach().chunk(4)[1], self.forget_bias)


def _biases(lstm: nn.LSTM) -> Iterator[tuple[Tensor, Tensor]]:
    """Both bias vectors of each layer and direction."""
    for name, parameter in lstm.named_parameters(recurse=False):
        if name.startswith("bias_ih"):
            yield parameter, lstm.get_parameter(name.replace("bias_ih", "bias_hh"))
