"""Loss functions."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossfuse import functional
from crossfuse._errors import check_choice, check_positive

_NAME = "ConcordanceLoss"


class ConcordanceLoss(nn.Module):
    r"""One minus the concordance correlation coefficient (CCC).

    .. math::
        \mathcal{L} = \frac{1}{B} \sum_b (1 - \rho_b) \qquad
        \rho = \frac{2 \sigma_{xy}}{\sigma_x^2 + \sigma_y^2 + (\mu_x - \mu_y)^2}

    the mean over the windows (and over the series, if there are several) of one minus
    the concordance correlation coefficient, see :func:`crossfuse.functional.concordance`. Windows
    without a valid step do not count.

    Args:
        over: ``"window"``: a coefficient for each window; ``"batch"``: one over the steps of all
            windows together, as the coefficient over a whole data set is computed.
        moments: ``"biased"``, ``"unbiased"`` or ``"mixed"`` (the code of the papers' authors).
        eps: The smallest denominator; it bounds the gradient on constant windows.

    Shape:
        - ``prediction``, ``target``: (B, L), or (B, L, ...) for several series
        - ``mask``: bool (B, L), **True = valid** (the opposite of the ``key_padding_mask`` of
          :class:`torch.nn.MultiheadAttention`)
        - output: a scalar in [0, 2]; 0 if no step is valid

    Raises:
        TypeError: If an input is not a real tensor, or the mask not a bool tensor.
        ValueError: If shapes, devices or options do not fit.

    References:
        | L. I. Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility",
          Biometrics 45(1), 1989

    Example:
        >>> loss = ConcordanceLoss()
        >>> valence, arousal = torch.randn(4, 300), torch.randn(4, 300)
        >>> target = torch.stack([valence, arousal], dim=-1)
        >>> loss(target, target), loss(-target, target) > 1
        (tensor(0.), tensor(True))
    """

    def __init__(self, *, over: str = "window", moments: str = "biased", eps: float = 1e-8) -> None:
        super().__init__()
        check_choice(_NAME, "over", over, ("window", "batch"))
        check_choice(_NAME, "moments", moments, ("biased", "unbiased", "mixed"))
        self.over = over
        self.moments = moments
        self.eps: float = check_positive(_NAME, "eps", eps, least=1e-30)

    @override
    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Args:
            prediction: (B, L) or (B, L, ...).
            target: Of the same shape.
            mask: Valid steps, (B, L), True = valid.

        Returns:
            The loss, a scalar.
        """
        agreement = functional.concordance(
            prediction, target, mask, over=self.over, moments=self.moments, eps=self.eps
        )
        valid = (
            torch.ones(prediction.shape[:2], dtype=torch.bool, device=prediction.device)
            if mask is None
            else mask
        )
        counts = valid.any(dim=1) if self.over == "window" else valid.any()
        further = (1,) * (agreement.ndim - counts.ndim)
        counts = counts.reshape((*counts.shape, *further)).expand_as(agreement)
        return (1 - agreement).masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)

    @override
    def extra_repr(self) -> str:
        return f"over={self.over!r}, moments={self.moments!r}, eps={self.eps}"
