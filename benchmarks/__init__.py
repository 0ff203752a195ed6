"""Benchmarks: README.md describes the method, ``__main__`` the command line."""
