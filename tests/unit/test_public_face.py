"""`from reproduce import ...`: what a user of a method meets first."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import reproduce
from reproduce import Method, Site, attach, load_method
from reproduce.errors import UserError
from reproduce.experiment.folder import ROOT
from reproduce.method.attach import Handle
from reproduce.method.attach import attach as attach_method
from reproduce.method.interface import Method as Interface
from reproduce.method.sites import Site as MethodSite

WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("reproduce", "methods")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_docstrings_print_what_they_say(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_the_public_face_has_examples() -> None:
    assert {"reproduce", "reproduce.experiment.folder", "reproduce.method.attach"} <= set(WITH_EXAMPLES)


def test_the_names_are_those_of_the_house() -> None:
    assert Method is Interface
    assert Site is MethodSite
    assert set(reproduce.__all__) <= set(dir(reproduce))
    assert [name for name in reproduce.__all__ if not hasattr(reproduce, name)] == []
    with pytest.raises(AttributeError, match="module 'reproduce' has no attribute 'Methods'"):
        _ = reproduce.Methods  # type: ignore[attr-defined]


def python(program: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def test_torch_is_loaded_by_the_first_use_only() -> None:
    program = "import sys, reproduce; print('torch' in sys.modules); reproduce.Site; print('torch' in sys.modules)"
    assert python(program).stdout.split() == ["False", "True"]


def penalty_of(handle: Handle, model: nn.Module) -> Tensor:
    model(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    return handle.penalty().detach()


def test_a_name_and_a_method_attach_alike() -> None:
    one, other = nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())
    named = attach("activity-norm", one, sites=["0"], kind="l2", strength=0.5, reduction="mean")
    made = attach(load_method("activity_norm", kind="l2", strength=0.5, reduction="mean"), other, ["0"])
    assert named.method == made.method
    assert penalty_of(named, one) == penalty_of(made, other) == 0.5 * (1 + 0 + 9 + 16) / 4


def test_every_argument_of_attach_is_handed_on() -> None:
    parameters = {"strength": 1.0, "mode": "sliced", "n_slices": 1}
    example = torch.zeros(1, 2)
    penalties = []
    for seed in (3, 4):
        one, other = nn.Sequential(nn.Tanh()), nn.Sequential(nn.Tanh())
        named = attach("per", one, {"0": "post"}, example, {"0": "nc"}, seed, **parameters)
        made = attach_method(load_method("per", **parameters), other, {"0": "post"}, example, {"0": "nc"}, seed)
        assert [(site.role, site.axes, site.shape) for site in named.sites] == [("post", "nc", (2,))]
        penalties.append(penalty_of(named, one))
        assert penalties[-1] == penalty_of(made, other)
    assert penalties[0] != penalties[1]


def test_a_named_method_reads_where_it_is_attached() -> None:
    """`sites` is a word of attach and of most methods; without it a method goes where its paper puts it."""
    model = nn.Sequential(nn.ReLU())
    options = {"kind": "l2", "strength": 1.0, "reduction": "mean"}
    assert penalty_of(attach("activity_norm", model, "post", **options), model) == (1 + 0 + 9 + 16) / 4
    assert penalty_of(attach("activity_norm", model, "pre", **options), model) == (1 + 4 + 9 + 16) / 4
    assert load_method("batchnorm").sites == "pre"
    for method in ("batchnorm", load_method("batchnorm")):
        attached = attach(method, nn.Sequential(nn.ReLU()), example=torch.zeros(1, 2))
        assert [site.role for site in attached.sites] == ["pre"]


def test_parameters_beside_a_method_are_refused() -> None:
    with pytest.raises(TypeError, match="takes no 'strength' for a method that is made already"):
        attach(load_method("per"), nn.ReLU(), [""], strength=1.0)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("pers", {}, "unknown method 'pers': did you mean per?"),
        ("per", {"strenght": 1.0}, "method per has no parameter 'strenght': did you mean strength?"),
        ("per", {"x": 1}, "method per has no parameter 'x': there are strength, mode, "),
        ("per", {"strength": -1.0}, "method per: strength: Input should be greater than or equal to 0, found -1.0"),
        ("vanilla", {"x": 1}, "method vanilla has no parameter 'x': there are none"),
    ],
)
def test_what_load_method_cannot_make_is_said_in_one_line(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_method(name, **parameters)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


OLD, NEW = "from reproduce.attach import attach as old", "from reproduce import attach as new"


ORDERS = {"old first": (OLD, NEW), "new first": (NEW, OLD), "twice": (OLD, OLD, NEW)}
USE = """
import reproduce, torch
model = torch.nn.Sequential(torch.nn.ReLU())
for attach in (old, new, reproduce.attach):
    attach("per", model, strength=1e-3).remove()
print("attached")
"""

# Each program in a process that has imported nothing of ours, but what takes long to import.
FORKS = """
import json, os, sys
import pydantic, torch, torch._dynamo
for name, program in json.load(sys.stdin).items():
    print(f"{name}:", flush=True)
    print(f"{name}:", file=sys.stderr, flush=True)
    if os.fork() == 0:
        assert not any(module.startswith("reproduce") for module in sys.modules)
        exec(program, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
os._exit(0)  # without what libraries say of what they leave behind
"""


def test_the_old_import_works_and_warns_once() -> None:
    """Importing the module `reproduce.attach` puts it in the place of the function of that name."""
    programs = {name: "\n".join([*order, USE]) for name, order in ORDERS.items()}
    found = python(FORKS, json.dumps(programs))
    assert found.stdout == "".join(f"{name}:\nattached\n" for name in ORDERS), found.stderr
    warning = "DeprecationWarning: reproduce.attach is deprecated: write `from reproduce import attach`"
    assert found.stderr == "".join(
        f"{name}:\n<string>:{order.index(OLD) + 1}: {warning}\n" for name, order in ORDERS.items()
    )
