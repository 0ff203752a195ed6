r"""The concordance correlation coefficient.

Shapes: B windows, L steps.
"""

from typing import cast

import torch
from torch import Tensor

from crossfuse._errors import (
    check_choice,
    check_dense,
    check_mask,
    check_positive,
    error,
    is_real,
    shapes,
)

_NAME = "functional.concordance"
OVER = ("window", "batch")
MOMENTS = ("biased", "unbiased", "mixed")


def concordance(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    over: str = "window",
    moments: str = "biased",
    eps: float = 1e-8,
) -> Tensor:
    r"""Concordance correlation coefficient (CCC): agreement in correlation, scale and offset.

    .. math::
        \rho_c = \frac{2 \sigma_{xy}}{\sigma_x^2 + \sigma_y^2 + (\mu_x - \mu_y)^2}
               = 1 - \frac{\overline{(x - y)^2}}{\sigma_x^2 + \sigma_y^2 + (\mu_x - \mu_y)^2}

    It is computed in the second form (with a further term if the moments are not biased), which
    loses no precision if the series nearly agree: equal series give exactly 1.

    Args:
        prediction: :math:`x`, (B, L), or (B, L, ...) for several series.
        target: :math:`y`, of the same shape.
        mask: Valid steps, bool (B, L), **True = valid** (the opposite of the
            ``key_padding_mask`` of :class:`torch.nn.MultiheadAttention`); ``None`` for all.
            Values at invalid steps are ignored.
        over: ``"window"``: one coefficient for each window; ``"batch"``: one over the steps of all
            windows together.
        moments: ``"biased"``: covariance and variances are means over n steps (Lin's
            definition); ``"unbiased"``: they are divided by n - 1 (torchmetrics'
            ``ConcordanceCorrCoef``); ``"mixed"``: a biased covariance over unbiased variances (the
            code of the papers' authors), at most (n - 1) / n.
        eps: The smallest denominator. If both series vary, and their means differ, by less than
            sqrt(eps), the coefficient is not meaningful, but its gradient stays bounded.

    Returns:
        The coefficient, (B, ...) over windows, (...) over the batch. It lies in [-1, 1]; with
        biased moments it is 1 exactly if the series are equal. It is 0 if no step is valid. The
        dtype is float32, or float64 if an input is; sums never run in half precision.

    Raises:
        TypeError: If an input is not a real tensor, or the mask not a bool tensor.
        ValueError: If shapes, devices or options do not fit.

    References:
        | L. I. Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility",
          Biometrics 45(1), 1989

    Example:
        >>> target = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> concordance(target, target)
        tensor([1.])
        >>> concordance(target + 1, target, torch.tensor([[True, True, True, False]]))
        tensor([0.5714])
    """
    _check(prediction, target, mask, over, moments, eps)
    wide = torch.promote_types(prediction.dtype, target.dtype)
    wide = torch.promote_types(wide, torch.float32)
    x, y = prediction.to(wide), target.to(wide)
    valid = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    valid = valid.reshape(*valid.shape, *[1] * (x.ndim - 2))  # (B, L, 1, ...)
    x, y = x.masked_fill(~valid, 0.0), y.masked_fill(~valid, 0.0)
    axes = (1,) if over == "window" else (0, 1)
    number = valid.sum(axes, keepdim=True)
    n, n_less_1 = number.clamp(min=1).to(wide), (number - 1).clamp(min=1).to(wide)

    def centred(series: Tensor) -> Tensor:
        # Twice: the mean of a series far from zero is off by a rounding error of that size.
        for _ in range(2):
            series = (series - series.sum(axes, keepdim=True) / n).masked_fill(~valid, 0.0)
        return series

    def total(product: Tensor) -> Tensor:
        return product.sum(axes)

    n_covariance = n_less_1 if moments == "unbiased" else n
    n_variance = n if moments == "biased" else n_less_1
    level = total((x - y) / n).square()
    apart = centred(x - y)
    x, y = centred(x), centred(y)
    spread = total((x.square() + y.square()) / n_variance) + level
    distance = total(apart.square() / n_variance) + level
    if moments == "mixed":
        distance = distance + 2 * total(x * y * (1 / n_variance - 1 / n_covariance))
    agreement = (1 - distance / spread.clamp(min=eps)).clamp(min=-1.0)
    return agreement.masked_fill(number.sum(axes) == 0, 0.0)


def _check(
    prediction: object, target: object, mask: object, over: str, moments: str, eps: float
) -> None:
    check_choice(_NAME, "over", over, OVER)
    check_choice(_NAME, "moments", moments, MOMENTS)
    check_positive(_NAME, "eps", eps, least=1e-30)
    for name, series in (("prediction", prediction), ("target", target)):
        if isinstance(series, Tensor):
            check_dense(_NAME, name, series)
        if not isinstance(series, Tensor) or not is_real(series.dtype):
            raise error(
                TypeError,
                _NAME,
                f"{name!r} is not a tensor of real numbers",
                got=series.dtype if isinstance(series, Tensor) else type(series).__name__,
                expected="a tensor (batch, steps, ...)",
                hint="convert it with torch.as_tensor",
            )
    x, y = cast(Tensor, prediction), cast(Tensor, target)
    if x.ndim < 2 or x.shape != y.shape:
        raise error(
            ValueError,
            _NAME,
            "'prediction' and 'target' are not of one shape (batch, steps, ...)",
            got=shapes({"prediction": x, "target": y}),
            expected="the same batch, steps and further axes",
            hint="x[None] adds a batch axis; x[..., 0] takes a lone feature out of its axis",
        )
    if x.device != y.device:
        raise error(
            ValueError,
            _NAME,
            "'prediction' is on another device than 'target'",
            got=x.device,
            expected=y.device,
            hint="move one of them with .to(device)",
        )
    if mask is not None:
        check_mask(_NAME, "mask", mask, x)
