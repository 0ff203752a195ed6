r"""The equations, one function each: pure, parameter-free, batch first.

Shapes: B batch, L steps, d features of one modality :math:`X`, D features of its joint :math:`J`.
Weights act on rows, so that features stay on the last axis. A product of three matrices is computed
in the cheaper of its two orders, chosen from the shapes.
"""

from crossfuse.functional._baselines import cross_attended_features as cross_attended_features
from crossfuse.functional._baselines import cross_attention as cross_attention
from crossfuse.functional._baselines import cross_correlation as cross_correlation
from crossfuse.functional._baselines import (
    leader_follower_attention as leader_follower_attention,
)
from crossfuse.functional._concordance import concordance as concordance
from crossfuse.functional._joint import joint_attended_features as joint_attended_features
from crossfuse.functional._joint import joint_attention_map as joint_attention_map
from crossfuse.functional._recursive import attended_features as attended_features
from crossfuse.functional._recursive import attention_map as attention_map
from crossfuse.functional._recursive import joint_correlation as joint_correlation
from crossfuse.functional._recursive import joint_features as joint_features
from crossfuse.functional._recursive import timeless_correlation as timeless_correlation
from crossfuse.functional._recursive import unaligned_correlation as unaligned_correlation
from crossfuse.functional._released import released_attended_features as released_attended_features
from crossfuse.functional._released import released_attention_map as released_attention_map
from crossfuse.functional._released import released_correlation as released_correlation
