"""Fusion methods on synthetic streams: one relation after the other, one budget."""
