r"""The equations, one function each: pure, parameter-free, batch first.

Shapes: B batch, L steps, d features of one modality :math:`X`, D features of its joint :math:`J`.
Weights multiply from the right, so features stay on the last axis. Products of three matrices use
the cheaper association for the given shapes.
"""

from crossfuse.functional._concordance import concordance as concordance
from crossfuse.functional._cross import cross_attended_features as cross_attended_features
from crossfuse.functional._cross import cross_attention as cross_attention
from crossfuse.functional._cross import cross_correlation as cross_correlation
from crossfuse.functional._cross_modal import cross_modal_attention as cross_modal_attention
from crossfuse.functional._cross_modal import cross_modal_positions as cross_modal_positions
from crossfuse.functional._jca import jca_attended_features as jca_attended_features
from crossfuse.functional._jca import jca_attention_map as jca_attention_map
from crossfuse.functional._jca import jca_correlation as jca_correlation
from crossfuse.functional._leader_follower import (
    leader_follower_attention as leader_follower_attention,
)
from crossfuse.functional._pooling import attention_pooling as attention_pooling
from crossfuse.functional._pooling import masked_mean as masked_mean
from crossfuse.functional._rcma import concat_features as concat_features
from crossfuse.functional._rcma import rcma_attended_features as rcma_attended_features
from crossfuse.functional._rcma import rcma_attention_map as rcma_attention_map
from crossfuse.functional._rcma import rcma_correlation as rcma_correlation
from crossfuse.functional._rcma import rcma_timeless_correlation as rcma_timeless_correlation
from crossfuse.functional._rcma import rcma_unaligned_correlation as rcma_unaligned_correlation
from crossfuse.functional._rcma_released import (
    rcma_released_attended_features as rcma_released_attended_features,
)
from crossfuse.functional._rcma_released import (
    rcma_released_attention_map as rcma_released_attention_map,
)
from crossfuse.functional._rcma_released import (
    rcma_released_correlation as rcma_released_correlation,
)
from crossfuse.functional._rcma_stable import rcma_feed_forward as rcma_feed_forward
from crossfuse.functional._rcma_stable import (
    rcma_stable_attention_map as rcma_stable_attention_map,
)
from crossfuse.functional._rcma_stable import (
    rcma_stable_correlation as rcma_stable_correlation,
)
