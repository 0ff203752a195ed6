"""Presets, methods and the training of one network."""
