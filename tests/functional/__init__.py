"""Tests of the functions: equations, losses and windows."""
