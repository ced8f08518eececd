"""The callback in Lightning's own training loop: its steps are those by hand, and a resumed training is undisturbed."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from reproduce import Method, attach, load_method
from reproduce.integrations.lightning import PenaltyCallback

RATE = 0.1
QUIET: dict[str, Any] = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec:FutureWarning")]


class Classifier(lightning.LightningModule):
    """Somebody's module."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("validation_loss", self.loss(batch))

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test_loss", self.loss(batch))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE)


class WithMomentum(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TwoParts(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)


class Late(Classifier):
    def __init__(self) -> None:
        super().__init__()
        del self.network

    def configure_model(self) -> None:
        self.network = nn.Linear(6, 3)


class CallsItself(Classifier):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class TwoViews(Classifier):
    """Its network is called once for each view."""

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) + super().loss((-batch[0], batch[1]))


class Halves(Classifier):
    """Each of two processes has every second row of a batch."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.loss([part[self.global_rank :: 2] for part in batch])


class TwoOptimizers(Classifier):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=RATE) for layer in (self.network[0], self.network[2])]


def l2(strength: float = 1.0) -> Method:
    return load_method("activity_norm", kind="l2", strength=strength, reduction="mean")


def data(n: int = 24) -> TensorDataset:
    return TensorDataset(torch.randn(n, 6, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3)


def trainer(*callbacks: Any, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        **{"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **QUIET, **options},
        callbacks=list(callbacks),
    )


def squares(network: nn.Sequential, inputs: Tensor) -> Tensor:
    """The sum over hidden layers of the mean square of activations."""
    first = network[1](network[0](inputs))
    return first.square().mean() + network[3](network[2](first)).square().mean()


def by_hand(clip: float | None = None) -> Classifier:
    """A module after one step of gradient descent on all data, with the penalty written out."""
    module = Classifier()
    (module.loss(data().tensors) + squares(module.network, data().tensors[0])).backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
    module.configure_optimizers().step()
    return module


def fp16(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-6),
        ({"gradient_clip_val": 0.2}, 1e-6),
        ({"precision": "bf16-mixed"}, 5e-3),
        ({"plugins": [fp16(2.0**12)]}, 1e-3),
        ({"plugins": [fp16(2.0**12)], "gradient_clip_val": 0.2}, 1e-3),
    ],
    ids=["float32", "clipped", "bfloat16", "float16", "float16, clipped"],
)
def test_a_step_is_the_step_by_hand(pieces: int, options: dict[str, Any], tolerance: float) -> None:
    options = copy.deepcopy(options)
    module, penalty = Classifier(), PenaltyCallback(l2())
    fitted = trainer(penalty, max_steps=1, accumulate_grad_batches=pieces, **options)
    fitted.fit(module, DataLoader(data(), batch_size=24 // pieces))
    wanted = by_hand(options.get("gradient_clip_val"))
    start = Classifier()
    moved = 0.0
    for one, other, before in zip(module.parameters(), wanted.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        moved = max(moved, (other - before).abs().max().item())
    assert moved > 5 * tolerance


@pytest.mark.parametrize("penalised", ["the network", "the module"])
def test_the_network_may_be_the_module_itself(penalised: str) -> None:
    module = CallsItself()
    penalty = PenaltyCallback(l2(), network="" if penalised == "the module" else "network")
    trainer(penalty, max_steps=1).fit(module, DataLoader(data(), batch_size=24))
    for one, other in zip(module.parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_two_methods_add_up(tmp_path: Path) -> None:
    module = Classifier()
    penalties = [PenaltyCallback(l2(strength), log_as=name) for strength, name in ((0.25, "first"), (0.75, "second"))]
    fitted = trainer(*penalties, max_steps=1)
    fitted.fit(module, DataLoader(data(), batch_size=24))
    for one, other in zip(module.parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    logged = fitted.callback_metrics
    assert logged["second"].item() == pytest.approx(3 * logged["first"].item(), rel=1e-6)
    fitted.save_checkpoint(tmp_path / "both.ckpt")
    states = torch.load(tmp_path / "both.ckpt", weights_only=False)["callbacks"]
    assert {penalty.state_key for penalty in penalties} <= set(states)


def test_the_penalty_is_logged_and_evaluation_has_none() -> None:
    module, penalty = Classifier(), PenaltyCallback(l2(5.0), log_as="regularizer")
    expected = 5.0 * squares(module.network, data().tensors[0]).item()
    fitted = trainer(penalty, max_steps=1)
    batches = DataLoader(data(), batch_size=24)
    fitted.fit(module, batches, batches)
    assert fitted.callback_metrics["regularizer"].item() == pytest.approx(expected, rel=1e-6)
    plain = Classifier()
    plain.load_state_dict(module.state_dict())
    (found,) = fitted.test(module, batches, verbose=False)
    assert found["test_loss"] == pytest.approx(plain.loss(data().tensors).item(), rel=1e-6)
    assert penalty.handle is not None
    assert penalty.handle.trace.is_empty


def test_it_acts_once_for_each_step_of_the_optimiser_and_sees_all_batches(everything: Method) -> None:
    module, penalty = Classifier(), PenaltyCallback(everything)
    trainer(penalty, max_epochs=2, accumulate_grad_batches=2).fit(module, DataLoader(data(24), batch_size=4))
    assert module.network.n_steps == 2 * 3
    assert module.network.n_samples == 2 * 24
    penalty.remove()
    assert list(module.state_dict()) == list(Classifier().state_dict())
    with pytest.raises(ValueError, match="removed handle"):
        penalty.handle.penalty()  # type: ignore[union-attr]


def test_it_does_not_act_where_the_scaler_leaves_a_step_out(everything: Method) -> None:
    module = Classifier()
    fitted = trainer(PenaltyCallback(everything), max_epochs=1, plugins=[fp16(2.0**100)])
    fitted.fit(module, DataLoader(data(24), batch_size=12))
    assert module.network.n_steps == 0
    for one, other in zip(module.network[0].parameters(), Classifier().network[0].parameters(), strict=True):
        assert torch.equal(one, other)


METHODS = {
    "everything": (None, {}),
    "vcl": (lambda: load_method("vcl", strength=0.3, sample_size=2), {"example": torch.zeros(2, 6)}),
    "per": (lambda: load_method("per", strength=0.3, mode="sliced"), {}),
    "sigreg": (lambda: load_method("sigreg", strength=0.3), {}),
    "batchnorm": (lambda: load_method("batchnorm"), {"sites": "pre", "example": torch.zeros(2, 6)}),
}


def resumed(
    method: Method, folder: Path, options: dict[str, Any], **trainer_options: Any
) -> list[tuple[Any, PenaltyCallback]]:
    """Modules after four epochs: undisturbed, and resumed after the second in a training of its own."""
    found = []
    for checkpoint in (None, str(folder / "epoch=1.ckpt")):
        module, penalty = WithMomentum(), PenaltyCallback(method, **options)
        saving = ModelCheckpoint(str(folder), filename="{epoch}", save_top_k=-1) if checkpoint is None else None
        fitted = trainer(
            *filter(None, [penalty, saving]), max_epochs=4, **trainer_options, enable_checkpointing=checkpoint is None
        )
        fitted.fit(module, DataLoader(data(24), batch_size=4), ckpt_path=checkpoint)
        found.append((module, penalty))
    return found


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_has_the_numbers_of_an_undisturbed_one(
    name: str, precision: str, tmp_path: Path, everything: Method
) -> None:
    make, options = METHODS[name]
    method = make() if make is not None else everything
    (whole, first), (parts, second) = resumed(method, tmp_path, options, precision=precision, accumulate_grad_batches=2)
    start = WithMomentum().state_dict()
    assert not torch.equal(whole.state_dict()["network.0.weight"], start["network.0.weight"])
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key
    assert first.handle is not None
    assert second.handle is not None
    for key, value in first.handle.state_dict().items():
        assert torch.equal(value, second.handle.state_dict()[key]), key


def test_without_its_state_the_training_would_differ(tmp_path: Path, everything: Method) -> None:
    """What the comparison above can tell: progress and the generator matter."""

    class Forgetful(PenaltyCallback):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            pass

    (whole, _), _ = resumed(everything, tmp_path, {})
    module, penalty = WithMomentum(), Forgetful(everything)
    path = tmp_path / "epoch=1.ckpt"
    content = torch.load(path, weights_only=False)
    content["callbacks"] = {penalty.state_key: {"nothing": 0}}
    torch.save(content, path)
    trainer(penalty, max_epochs=4).fit(module, DataLoader(data(24), batch_size=4), ckpt_path=str(path))
    assert not torch.equal(module.network[0].weight, whole.network[0].weight)


def test_what_became_a_part_of_the_network_is_tested_from_a_checkpoint(tmp_path: Path) -> None:
    example = torch.zeros(2, 6)
    saving = ModelCheckpoint(str(tmp_path), filename="{epoch}")
    fitted = trainer(
        PenaltyCallback(load_method("batchnorm"), sites="pre", example=example),
        saving,
        max_epochs=2,
        enable_checkpointing=True,
    )
    batches = DataLoader(data(), batch_size=8)
    fitted.fit(Classifier(), batches)
    (wanted,) = fitted.test(fitted.lightning_module, batches, verbose=False)
    other = PenaltyCallback(load_method("batchnorm"), sites="pre", example=example)
    (found,) = trainer(other).test(Classifier(), batches, ckpt_path=str(tmp_path / "epoch=1.ckpt"), verbose=False)
    assert found == wanted


def test_one_callback_trains_several_models_and_goes_on_with_one() -> None:
    penalty, batches = PenaltyCallback(l2()), DataLoader(data(), batch_size=24)
    modules = [Classifier(), Classifier()]
    for module in modules:
        trainer(penalty, max_steps=1).fit(module, batches)
    assert torch.equal(modules[0].network[0].weight, modules[1].network[0].weight)
    handle = penalty.handle
    trainer(penalty, max_steps=1).fit(modules[1], batches)
    assert penalty.handle is handle
    penalty.remove()
    trainer(penalty).test(modules[1], batches, verbose=False)
    assert penalty.handle is handle  # testing does not attach again what was removed


def test_schedules_follow_the_steps_of_the_optimiser() -> None:
    seen: list[float] = []

    class Watching(PenaltyCallback):
        def on_before_backward(self, *arguments: Any) -> None:
            super().on_before_backward(*arguments)
            seen.append(self._attached().progress.item())

    batches = DataLoader(data(24), batch_size=6)
    trainer(Watching(l2()), max_epochs=2, accumulate_grad_batches=2).fit(Classifier(), batches)
    assert seen == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    seen.clear()
    trainer(Watching(l2(), total_steps=2), max_epochs=1).fit(Classifier(), batches)
    assert seen == [0, 0.5, 1, 1]


def test_padding_is_left_out_by_a_mask_of_the_batch() -> None:
    class Words(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Linear(6, 8), nn.ReLU())

        def loss(self, batch: Any) -> Tensor:
            return self.network(batch[0]).sum() * 0

    words, is_real = torch.randn(4, 5, 6), torch.arange(5) < torch.tensor([[5], [3], [2], [1]])
    penalty = PenaltyCallback(l2(), mask=lambda batch: batch[1])
    module = Words()
    expected = module.network(words)[is_real].square().mean().item()
    fitted = trainer(penalty, max_steps=1)
    fitted.fit(module, DataLoader(TensorDataset(words, is_real), batch_size=4))
    assert fitted.callback_metrics["penalty"].item() == pytest.approx(expected, rel=1e-6)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield data(1)[0]


@pytest.mark.parametrize(
    ("module", "penalty", "options", "message"),
    [
        (Manual, {}, {}, r"^Manual optimises manually, .*attach\(\) the method yourself"),
        (TwoParts, {}, {}, r"^network=None is the only part with parameters, and TwoParts has network, head"),
        (Classifier, {"network": "net"}, {}, r"^Classifier has no part 'net' .* it has network: make it in __init__"),
        (Late, {}, {}, r"Late has none when training is set up"),
        (Classifier, {}, {"max_epochs": -1}, r"training takes inf steps.* max_epochs or max_steps"),
        (
            Classifier,
            {},
            {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]},
            r"accumulates batches by epoch: .*give PenaltyCallback its total_steps",
        ),
    ],
    ids=["manual", "two parts", "no such part", "made later", "endless", "accumulation that changes"],
)
def test_what_it_cannot_train_is_refused_in_one_line(
    module: Any, penalty: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    more = options.pop("callbacks", [])
    with pytest.raises(ValueError, match=message) as found:
        trainer(PenaltyCallback(l2(), **penalty), *more, **{"max_epochs": 2, **options}).fit(
            module(), DataLoader(data(), batch_size=12)
        )
    assert "\n" not in str(found.value)


def test_sharded_models_are_refused() -> None:
    penalty, fitted = PenaltyCallback(l2()), trainer(strategy=ModelParallelStrategy())
    with pytest.raises(
        ValueError, match=r"^PenaltyCallback trains on one device .*'ddp', found ModelParallelStrategy$"
    ):
        penalty.setup(fitted, Classifier(), "fit")


def test_an_endless_dataset_needs_its_total_steps() -> None:
    batches = DataLoader(Endless(), batch_size=4)
    trainer(PenaltyCallback(l2()), max_steps=2).fit(Classifier(), batches)
    with pytest.raises(ValueError, match="training takes -1 steps"):
        trainer(PenaltyCallback(l2()), max_epochs=1).fit(Classifier(), batches)
    trainer(PenaltyCallback(l2(), total_steps=9), max_epochs=1, limit_train_batches=2).fit(Classifier(), batches)


def test_several_optimisers_are_refused_by_lightning_itself() -> None:
    with pytest.raises(RuntimeError, match="multiple optimizers is only supported with manual optimization"):
        trainer(PenaltyCallback(l2()), max_steps=1).fit(TwoOptimizers(), DataLoader(data(), batch_size=12))


def test_a_precision_in_which_what_the_method_learns_stops_moving_is_refused(everything: Method) -> None:
    batches = DataLoader(data(), batch_size=12)
    with pytest.raises(ValueError, match=r"^precision='bf16-true' makes the method's 'scale' torch.bfloat16"):
        trainer(PenaltyCallback(everything), max_steps=1, precision="bf16-true").fit(Classifier(), batches)


def test_a_checkpoint_without_the_method_is_refused(tmp_path: Path) -> None:
    batches = DataLoader(data(), batch_size=12)
    saving = ModelCheckpoint(str(tmp_path), filename="{epoch}")
    trainer(saving, max_epochs=1, enable_checkpointing=True).fit(Classifier(), batches)
    with pytest.raises(ValueError, match=r"^the checkpoint was written without PenaltyCallback"):
        trainer(PenaltyCallback(l2()), max_epochs=2).fit(
            Classifier(), batches, ckpt_path=str(tmp_path / "epoch=0.ckpt")
        )


def averages() -> list[Any]:
    made = [callbacks.StochasticWeightAveraging(swa_lrs=0.1)]
    return [*made, callbacks.WeightAveraging()] if hasattr(callbacks, "WeightAveraging") else made


@pytest.mark.parametrize("index", range(len(averages())))
def test_an_average_that_lacks_what_the_method_adds_is_refused(index: int) -> None:
    average, penalty = averages()[index], PenaltyCallback(load_method("vcl", strength=1.0), example=data()[:16][0])
    module = Classifier()
    keys = list(module.state_dict())
    with pytest.raises(ValueError, match=rf"{type(average).__name__} averages .*beta': put PenaltyCallback before it"):
        trainer(average, penalty, max_epochs=5).fit(module, DataLoader(data(), batch_size=12))
    assert list(module.state_dict()) == keys
    trainer(PenaltyCallback(l2()), average, max_epochs=5).fit(module, DataLoader(data(), batch_size=12))
    trainer(averages()[index], PenaltyCallback(l2()), max_epochs=5).fit(Classifier(), DataLoader(data(), batch_size=12))
    own = PenaltyCallback(load_method("vcl", strength=1.0), example=data()[:16][0])
    trainer(own, averages()[index], max_epochs=5).fit(Classifier(), DataLoader(data(), batch_size=12))


def test_it_takes_a_method_and_no_name() -> None:
    with pytest.raises(TypeError, match=r"load_method\('per'\)"):
        PenaltyCallback("per")  # type: ignore[arg-type]


class Saving(lightning.Callback):
    """Writes each process's weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")


def on_both_batches(method: Method) -> Classifier:
    """What two processes come to, in one: the mean of their losses, each with its own penalty."""
    module = Classifier()
    handle = attach(method, module.network, "pre", torch.zeros(2, 6))
    optimizer = module.configure_optimizers()
    for step in range(3):
        optimizer.zero_grad()
        before = handle.state_dict()
        for rank in range(2):
            handle.load_state_dict(before)  # both draw the same
            batch = data(24)[8 * step + rank : 8 * step + 8 : 2]
            ((module.loss(batch) + handle.penalty(step / 3)) / 2).backward()
        optimizer.step()
    return module


def test_two_processes_train_as_one_on_both_their_batches(tmp_path: Path) -> None:
    method = load_method("vcl", strength=0.3, sample_size=2)
    environment = dict(os.environ)
    try:
        strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo", find_unused_parameters=True)
        fitted = trainer(
            PenaltyCallback(method, example=torch.zeros(2, 6)),
            Saving(tmp_path),
            strategy=strategy,
            devices=2,
            max_steps=3,
            use_distributed_sampler=False,
        )
        fitted.fit(Halves(), DataLoader(data(24), batch_size=8))
    finally:
        os.environ.clear()
        os.environ.update(environment)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert any("beta" in key for key in ranks[0])
    for key, wanted in on_both_batches(method).state_dict().items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        torch.testing.assert_close(ranks[0][key], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize(
    ("module", "method", "times"), [(TwoViews, l2(), 1), (Classifier, l2(), 0), (TwoViews, None, 0)]
)
def test_a_penalty_on_the_last_of_several_views_is_warned_of_once(module: Any, method: Any, times: int) -> None:
    callback = PenaltyCallback(method or load_method("weight_norm_penalty"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, max_epochs=1, accumulate_grad_batches=2).fit(module(), DataLoader(data(), 6))
    said = [str(warning.message) for warning in caught if "called the network 2 times" in str(warning.message)]
    assert len(said) == times
