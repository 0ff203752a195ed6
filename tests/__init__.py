"""Tests: one folder per kind, with what they share in `support`."""
