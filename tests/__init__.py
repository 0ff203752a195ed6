"""The tests: laws (`asserts`), naive twins (`reference`), drawn structures (`strategies`)."""
