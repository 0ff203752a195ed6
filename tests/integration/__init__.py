"""Tests of layers in other tools: compilers, exporters, checkpoints, frameworks."""
