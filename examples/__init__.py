"""Applications of crossfuse, each a package to run with ``python -m``."""
