"""The Aff-Wild2 set-up: valence and arousal from faces, voices and words.

Each folder imports only from those after it: commands, results, training, synthetic, network,
dataset. ``tests/examples/test_affwild2_order.py`` enforces this.
"""
