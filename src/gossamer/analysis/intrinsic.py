"""The intrinsic dimension of a training problem: how few random directions solve it nearly as well."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError, check_number


def intrinsic_dimension(accuracies: Mapping[int, float], baseline: float, fraction: float = 0.9) -> int | None:
    """The smallest dimension of a sweep whose accuracy reaches a share of the baseline, or None if none does.

    Source: Li et al. 2018, arXiv:1804.08838, where ``fraction`` is 0.9 (d_int90) and the baseline the accuracy of the
    same network trained in full, or 1.0.

    Args:
        accuracies: dimension k -> accuracy, in the unit of ``baseline``.
        baseline: above 0.

    Raises:
        ConfigError: nothing was measured, or a number cannot be.

    >>> intrinsic_dimension({100: 0.71, 200: 0.88, 400: 0.93}, baseline=0.98)
    400
    """
    if not accuracies:
        raise ConfigError("no accuracies are given; pass dimension -> accuracy of a sweep, e.g. {100: 0.7, 200: 0.9}")
    check_number("baseline", baseline, "an accuracy above 0, in the unit of the others", low=1e-9)
    check_number("fraction", fraction, "a share of the baseline, in [0, 1]", high=1.0)
    return min((k for k, accuracy in accuracies.items() if accuracy >= fraction * baseline), default=None)
