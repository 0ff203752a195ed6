"""What ``inspect`` returns is shown by its shapes."""

from __future__ import annotations

import ast

from hypothesis import given

from crossfuse import RecursiveCrossModalAttention
from tests.support.strategies import Streams, filled, streams


@given(streams(batch=(1, 2)))
def test_shows_shapes_in_the_structure_of_the_inputs(drawn: Streams) -> None:
    layer = filled(RecursiveCrossModalAttention(drawn.layer_dims, recursions=3), 0).double()
    seen = layer.inspect(drawn.inputs(), drawn.mask())
    given_shapes = [
        None if n in drawn.missing else (drawn.batch, drawn.length, dim)
        for n, dim in enumerate(drawn.dims)
    ]
    named = dict(zip(drawn.names, given_shapes, strict=True))
    expected: object = named if drawn.named else tuple(given_shapes)
    shown, count = repr(seen)[len("Inspection(outputs=") : -1].split(", recursions=")
    assert (ast.literal_eval(shown), count) == (expected, "3")
    shown = repr(seen.recursions[1])[len("Recursion(features=") :].split(", correlations=")[0]
    assert ast.literal_eval(shown) == expected
