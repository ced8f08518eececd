"""The examples for people with their own model: they run, the penalty acts, and the model stays theirs."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce import Method, load_method

ROOT = Path(__file__).parents[2]
NAMES = ("plain_loop", "lightning_callback", "trainer_subclass")
RATE = 0.1
LAYERS = [f"bert.encoder.layer.{index}.intermediate" for index in range(2)]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # advice of Lightning and of torch's DataLoader


@cache  # where it is wanted: the libraries take longer to load than all files of tests
def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def l2(strength: float) -> Method:
    return load_method("activity_norm", kind="l2", strength=strength, reduction="mean")


def shape_of(model: nn.Module) -> list[Any]:
    """Names of parameters and modules, and the number of hooks: what attaching changes."""
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return [list(model.state_dict()), [name for name, _ in model.named_modules()], hooks]


def squares_by_hand(model: nn.Module, inputs: Any, names: list[str]) -> Tensor:
    """The mean of squares of some modules' outputs, summed: what `l2` penalises."""
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, arguments, output: seen.append(output))
        for name in names
    ]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return torch.stack([output.square().mean() for output in seen]).sum()


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs_and_its_penalty_shrinks_activations(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        load(name).main()
    output = capsys.readouterr().out
    printed = re.findall(r"^strength (.+): test .*, mean square of the first layer (.+)$", output, re.M)
    (zero, free), (strength, penalised) = ((float(one), float(other)) for one, other in printed)
    assert zero == 0 < strength
    assert penalised < 0.9 * free
    concluded = f"The penalty brings the mean square from {free:.3f} to {penalised:.3f}, and the test "
    assert output.splitlines()[-1].startswith(concluded)


def test_at_strength_zero_the_plain_loop_is_the_loop_without_a_method() -> None:
    inputs, labels = torch.rand(200, 64, generator=torch.Generator().manual_seed(1)), torch.arange(200) % 10
    models = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            torch.manual_seed(0)
            models.append(load("plain_loop").network())
    before = shape_of(models[0])
    load("plain_loop").train(models[0], inputs, labels, l2(0.0), epochs=2)
    optimizer, order = torch.optim.Adam(models[1].parameters(), lr=1e-3), torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(200, generator=order).split(100):
            optimizer.zero_grad()
            F.cross_entropy(models[1](inputs[batch]), labels[batch]).backward()
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert shape_of(models[0]) == before


def trained_by_subclass(strength: float, pieces: int, folder: Path) -> tuple[Any, Any]:
    """One step of plain gradient descent over 16 sentences, without dropout."""
    from transformers import TrainingArguments

    from reproduce.integrations.transformers import PenaltyTrainer

    subclass = load("trainer_subclass")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = subclass.classifier()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=16 // pieces,
        gradient_accumulation_steps=pieces,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    sentences = subclass.sentences(16, seed=0)
    return PenaltyTrainer(
        model, arguments, train_dataset=sentences, eval_dataset=sentences, method=l2(strength), sites=subclass.SITES
    ), torch.stack([one["input_ids"] for one in sentences])


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_trainers_step_adds_the_gradient_of_the_penalty(pieces: int, tmp_path: Path) -> None:
    ends = []
    for strength in (0.0, 3.0):
        with torch.random.fork_rng(devices=[]):
            trainer, ids = trained_by_subclass(strength, pieces, tmp_path)
            start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
            trainer.train()
        ends.append(trainer.model)
    free, penalised = (dict(model.named_parameters()) for model in ends)
    twin = load("trainer_subclass").classifier()
    twin.load_state_dict(start, strict=False)
    (3.0 * squares_by_hand(twin.eval(), ids, LAYERS)).backward()
    moved = 0
    for name, parameter in twin.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(penalised[name] - free[name], -RATE * gradient, rtol=1e-4, atol=1e-6)
        moved += int(gradient.abs().max() > 1e-4)
    assert moved > 10


def test_a_trainer_evaluates_without_the_penalty_and_gives_the_model_back(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        before = shape_of(load("trainer_subclass").classifier())
        trainer, ids = trained_by_subclass(100.0, 1, tmp_path)
        found = trainer.evaluate()["eval_loss"]
        assert trainer.handle.trace.records == []
        labels = torch.stack([one["labels"] for one in trainer.eval_dataset])
        expected = F.cross_entropy(trainer.model.eval()(ids).logits, labels).item()
        assert found == pytest.approx(expected, rel=1e-5)
        trainer.train()
    trainer.handle.remove()
    assert shape_of(trainer.model) == before


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_what_the_example_does(name: str) -> None:
    """The code below its heading stands in the example, line for line."""
    page = (ROOT / "docs" / "own_model.md").read_text("utf-8")
    (section,) = (part for part in page.split("\n## ") if f"examples/{name}.py" in part.splitlines()[0])
    (piece,) = re.findall(r"```python\n(.*?)```", section, re.S)
    assert piece in (ROOT / "examples" / f"{name}.py").read_text("utf-8")
