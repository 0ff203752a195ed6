"""The command line's commands, one dataclass each."""
