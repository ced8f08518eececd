"""What the tables behind the pages hold: declared once, for the files and for the page that explains them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from reproduce.experiment.metrics import METRICS
from reproduce.results.judge import DIRECTIONS, WORDS

Kind = Literal["text", "integer", "number", "boolean"]


@dataclass(frozen=True)
class Field:
    """One column: its name, what its values are, and what they mean."""

    name: str
    kind: Kind
    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Schema:
    """One table: what a row is, and its columns in their order."""

    name: str
    row: str
    fields: tuple[Field, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)


RUNS_BEFORE_METRICS = (
    Field("id", "text", "the Run: the first 16 digits of the hash of all that can move a number of it"),
    Field("method", "text", "the method's folder"),
    Field("task_kind", "text", "the file in reproduce/tasks"),
    Field("dataset", "text", "the card in datasets/"),
    Field("model", "text", "the file in reproduce/models"),
    Field("experiments", "text", "method/experiment of each place where the Run stands, with `;` between them"),
    Field("tasks", "text", "the task there, place by place"),
    Field("arms", "text", "the arm there, place by place; nothing where it is superseded"),
    Field(
        "uses",
        "text",
        "place by place: `judged`; `not judged`, of another point of the arm's grid or a seed that only chooses; "
        "`superseded`, by newer code or other data",
    ),
    Field("seed", "integer", "the Run's seed"),
    Field("params", "text", "the method's parameters, as JSON"),
    Field("task", "text", "the task with its options, as JSON"),
    Field("recipe", "text", "how it was trained, as JSON"),
    Field("status", "text", "`completed` or `diverged`"),
    Field("diverged_step", "integer", "at which step it diverged"),
    Field("selection", "text", "which epoch counts: the last, or the best on one split"),
    Field("epoch", "integer", "the epoch that counts", "epochs"),
)
RUNS_AFTER_METRICS = (
    Field("parameters", "integer", "trainable numbers of the model"),
    Field("device", "text", "what it was trained on"),
    Field("precision", "text", "of the forward pass"),
    Field("threads", "integer", "of the CPU"),
    Field("wall_seconds", "number", "training with its evaluations", "s"),
    Field("peak_memory_bytes", "integer", "most memory that was held", "bytes"),
    Field("finished", "text", "when, in UTC (ISO 8601)"),
    Field("loop_version", "integer", "of the training loop, the models and the data's reading"),
    Field("method_version", "integer", "of the method"),
    Field("dataset_checksum", "text", "SHA-256 over the data"),
    Field("torch", "text", "the version of PyTorch"),
    Field("commit", "text", "of this repository"),
    Field("dirty", "boolean", "whether files differed from that commit"),
    Field("counts", "boolean", "whether it stands in an experiment on these pages and is not superseded"),
    Field("evidence", "text", "the sealed Result, from the folder of the pages"),
)
EPOCHS = Schema(
    "epochs",
    "a Run, an evaluation, a split and a metric",
    (
        Field("id", "text", "the Run, as in `runs`"),
        Field("epoch", "integer", "epochs done", "epochs"),
        Field("step", "integer", "steps of the optimizer done", "steps"),
        Field("split", "text", "`train`, `validation` or `test`"),
        Field(
            "metric",
            "text",
            "its name; on `train`: `train_loss`, the mean since the evaluation before, penalty apart, and `penalty`",
        ),
        Field("value", "number", "in the metric's unit; `nan` and `inf` are kept as they are"),
    ),
)
VERDICTS = Schema(
    "verdicts",
    "a claim",
    (
        Field("method", "text", "the method's folder"),
        Field("experiment", "text", "the file in its experiments/"),
        Field("scale", "text", "`paper`, `reduced` or `quick`"),
        Field("task", "text", "the task in it"),
        Field("arm", "text", "the arm that the claim is about"),
        Field("arm_label", "text", "what pages call it"),
        Field("over", "text", "the arm that it is compared with; nothing where the claim states a value"),
        Field("over_label", "text", "what pages call that one"),
        Field("metric", "text", "split and name, like `test.error`"),
        Field("claimed_value", "number", "the number that is claimed: of the arm, or of the arm minus the other"),
        Field("claimed_direction", "text", "`lower` or `higher`, where no number is claimed"),
        Field("tolerance", "number", "set before the runs"),
        Field("paper_runs", "integer", "how many runs the printed number is the mean of", "runs"),
        Field("source", "text", "where the paper states it"),
        Field("ours", "boolean", "whether it is our own claim, which no paper makes"),
        Field("value", "number", "what came out: of the arm, or of the arm minus the other"),
        Field("low", "number", "lower end of the 95 % interval"),
        Field("high", "number", "upper end of the 95 % interval"),
        Field("n", "integer", "seeds; of a gap, those of the arm that has fewer", "seeds"),
        Field("verdict", "text", f"one of: {', '.join(WORDS)}"),
        Field("points", "text", f"at reduced scale, of a gap: {', '.join(DIRECTIONS)}"),
        Field("reason", "text", "why, in words"),
        Field("p", "number", "two-sided: of a gap that there is none, of a value that one more run gives the paper's"),
        Field("p_adjusted", "number", "the same by Holm over the claims of this kind and author on the table"),
    ),
)


def runs_schema(metrics: Iterable[str]) -> Schema:
    """The columns of `runs`, with one for each of these metrics, like "test.error"."""
    finals = tuple(
        Field(metric, "number", f"{metric.partition('.')[0]} split, at the epoch that counts", METRICS[name].unit)
        for metric in metrics
        if (name := metric.partition(".")[2]) in METRICS
    )
    return Schema("runs", "a sealed Result", (*RUNS_BEFORE_METRICS, *finals, *RUNS_AFTER_METRICS))
