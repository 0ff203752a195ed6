"""Exercises recognised from a smartwatch: two real sensors, fused, on people never seen."""
