"""Tests of each layer: its properties, and its agreement with a reference implementation."""
