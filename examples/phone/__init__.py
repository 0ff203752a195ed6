"""Activities recognised from a phone: two real sensors, fused, on held-out subjects."""
