"""Fusion layers for PyTorch: N streams of features from the same moments, fused."""

from importlib.metadata import version as _version

from crossfuse import convert as convert
from crossfuse import functional as functional
from crossfuse import windows as windows
from crossfuse._compile import compile as compile
from crossfuse.concat import ConcatFusion as ConcatFusion
from crossfuse.cross import CrossAttention as CrossAttention
from crossfuse.cross_modal_transformer import CrossModalTransformer as CrossModalTransformer
from crossfuse.gate import DynamicGate as DynamicGate
from crossfuse.joint import JointCrossAttention as JointCrossAttention
from crossfuse.leader_follower import LeaderFollowerAttention as LeaderFollowerAttention
from crossfuse.losses import ConcordanceLoss as ConcordanceLoss
from crossfuse.missing import MissingTokens as MissingTokens
from crossfuse.missing import ModalityDropout as ModalityDropout
from crossfuse.per_modality import PerModality as PerModality
from crossfuse.recursive import RecursiveCrossModalAttention as RecursiveCrossModalAttention
from crossfuse.temporal import TemporalConvNet as TemporalConvNet
from crossfuse.temporal import TemporalState as TemporalState

__version__ = _version("crossfuse")
