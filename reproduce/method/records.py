"""What a Site recorded in a step, as samples: whole maps or locations, all positions or those that are no padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from reproduce.method.sites import Site

Features = Literal["flatten", "channels"]  # what a sample of a map is: all of it, or one location


class Record(NamedTuple):
    """One activation that passed one Site in this step."""

    site: Site
    activation: Tensor

    @property
    def is_masked(self) -> bool:
        """Whether some positions are padding, and no samples."""
        return False

    def refuse_empty(self) -> None:
        """Raises a ValueError where the batch was empty."""
        activation = self[1]  # also of a masked one
        if activation.numel() == 0:
            raise ValueError(
                f"Site {self.site.name!r}: activations {tuple(activation.shape)} are empty, and a penalty needs a "
                "sample: leave empty batches out"
            )

    @property
    def samples(self) -> Tensor:
        """The activation as (samples, features): space and time count as samples."""
        value = self._features_last
        return value.reshape(-1, value.shape[-1])

    def vectors(self, features: Features) -> Tensor:
        """The activation as (..., features), without a copy where its layout allows.

        A map, (n, c, h, w) say, is one vector of all its values (``"flatten"``, in the order of memory: for methods to
        which units are a set) or one vector of channels at each location (``"channels"``). Other activations have
        their features last already.
        """
        if not self.site.is_map:
            return self.activation
        if features == "channels":
            return self._features_last
        here, there = (-1, 1) if self.site.axes.endswith("c") else (1, -1)
        moved = self.activation.movedim(here, there)
        return (moved if moved.is_contiguous() else self.activation).flatten(1)

    def as_samples(self, features: Features) -> tuple[Tensor, int]:
        """The activation, and how many of its last axes are one sample: a whole map needs no view."""
        if features == "flatten" and self.site.is_map:
            return self.activation, self.activation.dim() - 1
        return self.vectors(features), 1

    @property
    def examples(self) -> Tensor:
        """The activation as (n, *units): units of a map in the order of ``site.shape``, of a sequence (t, c)."""
        if self.site.known_axes == "tnc":
            return self.activation.transpose(0, 1)
        is_moved = self.site.is_map and self.site.has_features_last
        return self.activation.movedim(-1, 1) if is_moved else self.activation

    @property
    def channel_means(self) -> Tensor:
        """(n, units): of a map the means of its channels, of other activations what they are."""
        examples = self.examples
        return examples.flatten(2).mean(2) if examples.dim() > 2 else examples

    @property
    def _features_last(self) -> Tensor:
        return self.activation if self.site.has_features_last else self.activation.movedim(1, -1)


class MaskedRecord(Record):
    """A Record of which only the positions where ``mask`` (n, positions...) holds are samples."""

    mask: Tensor

    @classmethod
    def of(cls, record: Record, mask: Tensor) -> MaskedRecord:
        masked = cls(*record)
        masked.mask = mask
        return masked

    @property
    def is_masked(self) -> bool:
        return True

    @property
    def activation(self) -> Tensor:  # type: ignore[override]
        """Refused: whoever reads it would read padding too."""
        way = "choose features = 'channels', where it has them, or " if self.site.is_map else ""
        raise ValueError(
            f"Site {self.site.name!r} (axes {self.site.axes!r}): the method reads its activations whole, and cannot "
            f"leave masked positions out: {way}give no mask"
        )

    @property
    def samples(self) -> Tensor:
        """(samples, features) of the positions that the mask keeps."""
        whole = Record(*self)
        positions = whole.examples if self.site.known_axes == "tnc" else whole._features_last
        if self.mask.shape != positions.shape[:-1]:
            raise ValueError(
                f"Site {self.site.name!r}: a mask {tuple(self.mask.shape)} does not fit activations "
                f"{tuple(whole.activation.shape)} with axes {self.site.axes!r}: (n, positions...) is needed, and other "
                "Sites left out"
            )
        kept = positions[self.mask.to(positions.device)]
        if not len(kept):
            raise ValueError(
                f"Site {self.site.name!r}: the mask is False everywhere, and leaves no sample: True is where a "
                "position is real, so give ~padding"
            )
        return kept

    def vectors(self, features: Features) -> Tensor:
        """`samples`; whole maps are refused."""
        return self.activation if features == "flatten" and self.site.is_map else self.samples


class PackedRecord(Record):
    """A Record of a packed sequence: its rows are the real time steps of all sequences, as a mask would leave them."""

    @property
    def activation(self) -> Tensor:  # type: ignore[override]
        """Refused: rows of one sequence are not beside each other."""
        raise ValueError(
            f"Site {self.site.name!r} has a packed sequence, and the method reads activations (time, batch, features): "
            "pad it before, by pad_packed_sequence, and name a module after that"
        )

    @property
    def samples(self) -> Tensor:
        """(samples, features), one for each time step."""
        return Record(*self).activation

    def vectors(self, features: Features) -> Tensor:
        """`samples`."""
        return self.samples

    def as_samples(self, features: Features) -> tuple[Tensor, int]:
        return self.samples, 1


def without_masked(record: Record, mask: Tensor, calls: int) -> Record:
    """The record without its masked positions; as it is where it has none, one row an example or a packed sequence.

    Raises:
        ValueError: rows without positions that are neither, as those of a cell that is called at each step.
    """
    rows = len(record.activation)
    if record.site.is_packed and rows == int(mask.sum()):
        return record
    if record.site.known_axes != "nc" and not record.site.is_packed:
        return MaskedRecord.of(record, mask)
    if calls == 1 and rows in (len(mask), int(mask.sum())):
        return record
    raise ValueError(
        f"Site {record.site.name!r} holds {rows} rows without positions, met {calls} times in the forward pass, and a "
        f"mask {tuple(mask.shape)} does not say which are real: leave it out of `sites`"
    )
