"""One recursion of RCMA: a branch per modality, all updated from the same features.

Shapes: B batch, L steps, d features of a modality, D features of its joint.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from crossfuse._recursive_step import Attended, Joint, unit_scale
from crossfuse._stable_together import attended_together, inspected_together, pays_together
from crossfuse.functional import _equations as equations


class Step(nn.ModuleDict):
    """One recursion, a branch per modality in the layer's order."""

    @override
    def forward(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None], dropout: float
    ) -> tuple[Tensor, ...]:
        """Returns the attended features of every modality."""
        if pays_together(list(self.values()), features, masks, dropout):
            return attended_together(list(self.values()), features)
        # One after the other: C and H of a modality are freed before those of the next are made.
        return tuple(branch(*inputs, dropout) for branch, *inputs in self._inputs(features, masks))

    def attend(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None], dropout: float
    ) -> list[Attended]:
        """Returns the attended features, C and H of every modality."""
        if pays_together(list(self.values()), features, masks, dropout):
            return inspected_together(list(self.values()), features)
        return [
            branch.attend(*inputs, dropout) for branch, *inputs in self._inputs(features, masks)
        ]

    def _inputs(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> Iterator[tuple[Any, Tensor, Tensor, Joint, Tensor | None]]:
        """Yields what each branch needs, when it is its turn."""
        branches: list[Any] = list(self.values())  # also if they are wrapped
        normalised = branches[0].normalised
        inner = list(map(unit_scale, features, masks)) if normalised else list(features)
        whole: Tensor | None = None
        for branch, x, own, valid in zip(branches, features, inner, masks, strict=True):
            members = branch.sizes.members
            if len(branch.sizes.columns) > 1:
                joint: Joint = [inner[m] for m in members]
            elif len(members) == len(inner):
                whole = equations.concat_features(inner) if whole is None else whole
                joint = [whole]
            else:
                joined = [inner[m] for m in members]
                joint = joined if len(joined) == 1 else [equations.concat_features(joined)]
            yield branch, x, own, joint, valid
