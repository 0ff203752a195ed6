"""What the examples share: rivals from torch, and the runs and tables of watch and phone."""
