"""The papers' authors' checkpoints as state dicts of this package's layers.

Each function takes the state dict of one of their modules and returns one that the layer's
``load_state_dict`` takes. Unknown and missing keys raise an error. The few keys known to have no
counterpart in a layer are skipped:
:func:`dropped` lists those of a checkpoint, each with the reason.
"""

from crossfuse.convert._layers import dropped as dropped
from crossfuse.convert._layers import jca as jca
from crossfuse.convert._layers import leader_follower as leader_follower
from crossfuse.convert._layers import rcma as rcma
from crossfuse.convert._layers import tcn as tcn
