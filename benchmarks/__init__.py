"""Benchmarks: how they are taken stands in README.md, how they are run in ``__main__``."""
