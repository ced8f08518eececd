"""What a method is made of: the interface, the Sites it reads, what several methods compute alike, and `attach`."""

from reproduce.errors import errors_in
from reproduce.method.activations import (
    accumulation_dtype,
    check_activations,
    grouped,
    groups_of_samples,
    in_float32,
    is_channels_last,
    sample_rows,
)
from reproduce.method.chebyshev import clenshaw
from reproduce.method.interface import Method, NonNegative, Positive, PositiveCount, Unregularized
from reproduce.method.projections import SharedDirections, directions_for, sample_directions
from reproduce.method.sites import (
    Features,
    Record,
    Role,
    Site,
    Trace,
    device_of,
    dtype_of,
    fill_sites,
    holders_of,
    sites_of,
    sites_with_role,
)
from reproduce.method.together import losses_together, mean_of_each, sum_of_each

__all__ = [
    "Features",
    "Method",
    "NonNegative",
    "Positive",
    "PositiveCount",
    "Record",
    "Role",
    "SharedDirections",
    "Site",
    "Trace",
    "Unregularized",
    "accumulation_dtype",
    "check_activations",
    "clenshaw",
    "device_of",
    "directions_for",
    "dtype_of",
    "errors_in",
    "fill_sites",
    "grouped",
    "groups_of_samples",
    "holders_of",
    "in_float32",
    "is_channels_last",
    "losses_together",
    "mean_of_each",
    "sample_directions",
    "sample_rows",
    "sites_of",
    "sites_with_role",
    "sum_of_each",
]
