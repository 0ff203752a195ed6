"""Exercises recognised from a smartwatch: two real sensors, fused, on held-out subjects."""
