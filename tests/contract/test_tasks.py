"""What every kind of Task must keep: declared metrics, a prepared batch, a pass for the Sites that leaves no trace."""

from __future__ import annotations

from typing import Any

import torch

from reproduce.experiment.metrics import METRICS
from reproduce.method import Unregularized
from reproduce.tasks import check_options


def test_metrics_are_declared(problem: Any) -> None:
    task = problem.session(Unregularized()).task
    found = task.evaluate()
    assert task.metric in METRICS.values()
    assert task.metric.better is not None
    assert "test" in found
    options = check_options(problem.spec)  # by which a plan refuses claims
    for split, metrics in found.items():
        told = options.metrics | (options.test_metrics if split == "test" else frozenset())
        assert task.metric.name in metrics
        assert set(metrics) <= told
        assert told - set(metrics) <= {"decoder_norm"}  # of models that have such rows
        counted = {name for name in metrics if name.startswith("output_")}  # the bars of a histogram are no metrics
        assert set(metrics) - counted <= set(METRICS)


def test_a_prepared_batch_needs_nothing_drawn(problem: Any) -> None:
    """Its loss has a gradient, is the same each time, and is that of the Task's own first batch."""
    session = problem.session(Unregularized())
    states = {name: state.clone() for name, state in session.generators.state_dict().items()}
    loss = session.task.prepared_loss()
    first = loss()
    assert first.shape == ()
    first.backward()
    assert any(parameter.grad is not None for parameter in session.model.parameters())
    if not dropout_draws(session, states):
        assert torch.equal(loss(), first)
    if hasattr(session.task, "order"):
        session.task.order = torch.arange(len(session.task.order))
    session.generators.load_state_dict(states)
    torch.testing.assert_close(session.task.loss(torch.tensor(0)), first)


def dropout_draws(session: Any, states: dict[str, torch.Tensor]) -> bool:
    """Whether the model drew a mask; nothing else may have drawn."""
    changed = {name for name, state in session.generators.state_dict().items() if not torch.equal(state, states[name])}
    assert changed <= {"dropout"}
    return bool(changed)


def test_sites_are_described_in_forward_order(problem: Any) -> None:
    trained = problem.trained_once(Unregularized())
    session = problem.session(Unregularized())
    with session.trace.recording_every_role():
        session.forward()
    order = [record.site.name for record in session.trace.records]
    assert list(trained.epochs[-1].sites) == order != []
