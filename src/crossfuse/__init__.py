"""Fusion layers for PyTorch: fuse N synchronised streams of features."""

from importlib.metadata import version as _version

from crossfuse import convert as convert
from crossfuse import functional as functional
from crossfuse import windows as windows
from crossfuse._align import align as align
from crossfuse._collate import collate as collate
from crossfuse._compile import compile as compile
from crossfuse._resample import resample as resample
from crossfuse.concat import ConcatFusion as ConcatFusion
from crossfuse.cross import CrossAttention as CrossAttention
from crossfuse.cross_modal_transformer import CrossModalTransformer as CrossModalTransformer
from crossfuse.gate import DynamicGate as DynamicGate
from crossfuse.inspection import Inspection as Inspection
from crossfuse.inspection import Recursion as Recursion
from crossfuse.joint import JointCrossAttention as JointCrossAttention
from crossfuse.leader_follower import LeaderFollowerAttention as LeaderFollowerAttention
from crossfuse.live import LiveState as LiveState
from crossfuse.live import LiveWindow as LiveWindow
from crossfuse.losses import ConcordanceLoss as ConcordanceLoss
from crossfuse.missing import MissingTokens as MissingTokens
from crossfuse.missing import ModalityDropout as ModalityDropout
from crossfuse.per_modality import PerModality as PerModality
from crossfuse.pooling import AttentionPooling as AttentionPooling
from crossfuse.pooling import MaskedMean as MaskedMean
from crossfuse.recursive import RecursiveCrossModalAttention as RecursiveCrossModalAttention
from crossfuse.temporal import TemporalConvNet as TemporalConvNet
from crossfuse.temporal import TemporalState as TemporalState

__version__ = _version("crossfuse")
