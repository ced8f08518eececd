"""What a method is made of: the interface, the Sites it reads, what several methods compute alike, and `attach`."""

from reproduce.errors import errors_in
from reproduce.method.activations import (
    accumulation_dtype,
    check_activations,
    grouped,
    groups_of_samples,
    in_float32,
    is_channels_last,
    moderate_scale,
    sample_rows,
)
from reproduce.method.chebyshev import clenshaw
from reproduce.method.functions import (
    TransformableFunction,
    differentiable_once,
    is_in_backward,
    making_constants,
    version_of,
)
from reproduce.method.gaussian import Deviation, gaussian_code
from reproduce.method.interface import Later, Method, NonNegative, Positive, PositiveCount, Unregularized
from reproduce.method.kernels import Kernel, KernelKind, kernels_of, refuse_frozen
from reproduce.method.made_weights import weight_in_use
from reproduce.method.normalization import batch_normalization
from reproduce.method.own_parts import holder_of, own_attribute, own_parametrizations
from reproduce.method.projections import SharedDirections, directions_for, sample_directions
from reproduce.method.quantiles import QuantileMemory, quantile_points, tied_places
from reproduce.method.records import Features, Record
from reproduce.method.shown import show_in_forward
from reproduce.method.sites import (
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
    "Deviation",
    "Features",
    "Kernel",
    "KernelKind",
    "Later",
    "Method",
    "NonNegative",
    "Positive",
    "PositiveCount",
    "QuantileMemory",
    "Record",
    "Role",
    "SharedDirections",
    "Site",
    "Trace",
    "TransformableFunction",
    "Unregularized",
    "accumulation_dtype",
    "batch_normalization",
    "check_activations",
    "clenshaw",
    "device_of",
    "differentiable_once",
    "directions_for",
    "dtype_of",
    "errors_in",
    "fill_sites",
    "gaussian_code",
    "grouped",
    "groups_of_samples",
    "holder_of",
    "holders_of",
    "in_float32",
    "is_channels_last",
    "is_in_backward",
    "kernels_of",
    "losses_together",
    "making_constants",
    "mean_of_each",
    "moderate_scale",
    "own_attribute",
    "own_parametrizations",
    "quantile_points",
    "refuse_frozen",
    "sample_directions",
    "sample_rows",
    "show_in_forward",
    "sites_of",
    "sites_with_role",
    "sum_of_each",
    "tied_places",
    "version_of",
    "weight_in_use",
]
