"""The equations without their checks, for the layers, which have checked their inputs."""

from crossfuse.functional import (
    _cross,
    _cross_modal,
    _jca,
    _leader_follower,
    _pooling,
    _rcma,
    _rcma_released,
    _rcma_stable,
)
from crossfuse.functional._checks import unchecked

attention_pooling = unchecked(_pooling.attention_pooling)
concat_features = unchecked(_rcma.concat_features)
cross_attended_features = unchecked(_cross.cross_attended_features)
cross_attention = unchecked(_cross.cross_attention)
cross_correlation = unchecked(_cross.cross_correlation)
cross_modal_attention = unchecked(_cross_modal.cross_modal_attention)
cross_modal_positions = unchecked(_cross_modal.cross_modal_positions)
jca_attended_features = unchecked(_jca.jca_attended_features)
jca_attention_map = unchecked(_jca.jca_attention_map)
jca_correlation = unchecked(_jca.jca_correlation)
leader_follower_attention = unchecked(_leader_follower.leader_follower_attention)
masked_mean = unchecked(_pooling.masked_mean)
rcma_attended_features = unchecked(_rcma.rcma_attended_features)
rcma_attention_map = unchecked(_rcma.rcma_attention_map)
rcma_correlation = unchecked(_rcma.rcma_correlation)
rcma_feed_forward = unchecked(_rcma_stable.rcma_feed_forward)
rcma_released_attended_features = unchecked(_rcma_released.rcma_released_attended_features)
rcma_released_attention_map = unchecked(_rcma_released.rcma_released_attention_map)
rcma_released_correlation = unchecked(_rcma_released.rcma_released_correlation)
rcma_stable_attention_map = unchecked(_rcma_stable.rcma_stable_attention_map)
rcma_stable_correlation = unchecked(_rcma_stable.rcma_stable_correlation)
rcma_timeless_correlation = unchecked(_rcma.rcma_timeless_correlation)
rcma_unaligned_correlation = unchecked(_rcma.rcma_unaligned_correlation)
