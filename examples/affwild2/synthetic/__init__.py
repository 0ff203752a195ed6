"""Synthetic trials in the official layout, their ceilings, and the demo's backbones."""
