"""The public surface: the names, what each docstring promises, and what an import costs."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import crossfuse
from tests.support.layers import SPECIMENS

CLASSES = {
    "AttentionPooling",
    "ConcatFusion",
    "ConcordanceLoss",
    "CrossAttention",
    "CrossModalTransformer",
    "DynamicGate",
    "Inspection",
    "JointCrossAttention",
    "LeaderFollowerAttention",
    "LiveState",
    "LiveWindow",
    "MaskedMean",
    "MissingTokens",
    "ModalityDropout",
    "PerModality",
    "Recursion",
    "RecursiveCrossModalAttention",
    "TemporalConvNet",
    "TemporalState",
}
FUNCTIONS = {"align", "collate", "compile", "resample"}
MODULES = {"convert", "functional", "windows"}


def public(module: ModuleType) -> set[str]:
    return {name for name in vars(module) if not name.startswith("_")}


def test_the_package_has_these_names_and_no_others() -> None:
    submodules = {
        name
        for name in public(crossfuse)
        if inspect.ismodule(getattr(crossfuse, name))
        and getattr(crossfuse, name).__name__.startswith("crossfuse.")
    }
    assert public(crossfuse) - submodules == CLASSES | FUNCTIONS
    assert submodules >= MODULES


def test_the_version_is_that_of_the_distribution() -> None:
    assert crossfuse.__version__ == version("crossfuse")


def test_the_package_is_typed() -> None:
    package = importlib.resources.files("crossfuse")
    assert (package / "py.typed").is_file()


def test_importing_changes_nothing_and_is_light() -> None:
    """In a fresh process: no heavy import beyond torch and einops, no global state, no output."""
    script = """
import sys, torch
state = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
before = set(sys.modules)
import crossfuse
after = {name.partition(".")[0] for name in set(sys.modules) - before}
allowed = {"crossfuse", "einops", "typing_extensions", "torch"} | set(sys.stdlib_module_names)
assert after <= allowed, after - allowed
assert "triton" not in sys.modules
assert torch.equal(torch.get_rng_state(), state[0])
assert (torch.get_default_dtype(), torch.get_num_threads()) == state[1:]
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def owned(module: ModuleType) -> Iterator[tuple[str, Callable[..., object]]]:
    """The public functions and classes that a module defines."""
    for name, value in vars(module).items():
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if value.__module__.startswith("crossfuse"):
            yield name, value


PUBLIC = {
    **dict(owned(crossfuse)),
    **{
        f"{module}.{name}": value
        for module in sorted(MODULES & public(crossfuse))
        for name, value in owned(getattr(crossfuse, module))
    },
}
LAYERS = {
    name: value
    for name, value in PUBLIC.items()
    if inspect.isclass(value) and issubclass(value, nn.Module)
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_in_the_laws_the_pages_and_the_readme(name: str) -> None:
    """Who adds a layer is reminded of its specimen, its API entry and its row in the README."""
    root = Path(__file__).parents[2]
    assert name in {key.partition("-")[0] for key in SPECIMENS}, f"{name} has no specimen"
    pages = "".join(page.read_text() for page in (root / "docs" / "api").glob("*.md"))
    entry = rf"autoclass:: crossfuse\.{name}(\(\))?\n"  # with a signature, if it has no arguments
    assert re.search(entry, pages), f"{name} is in no page of docs/api"
    assert f"| `{name}` |" in (root / "README.md").read_text(), f"{name} has no row in the README"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_thing_is_documented(name: str) -> None:
    """A verb phrase, every argument by its name, and an example."""
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert re.match(r"[A-Z]\w+", text), f"{name} begins with {text[:20]!r}"
    assert text.splitlines()[0].endswith("."), f"{name}: the first line is no sentence"
    assert ">>>" in text, f"{name} has no example"
    for parameter in inspect.signature(PUBLIC[name]).parameters:
        if parameter in ("args", "kwargs"):  # of a layer without options
            continue
        named = re.search(rf"(^|\W){parameter}(\W|$)", text)
        assert named, f"{name} does not say what {parameter} is"


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_states_its_shapes_errors_and_an_example(name: str) -> None:
    text = inspect.getdoc(LAYERS[name]) or ""
    arguments = ("Args:",) if "__init__" in vars(LAYERS[name]) else ()
    for section in (*arguments, "Shape:", "Raises:", "Example:"):
        assert section in text, f"{name} has no section {section}"
    assert ">>>" in text
    assert "(B, L" in text
    if "mask" in inspect.signature(LAYERS[name].forward).parameters:
        assert "True = valid" in text, f"{name} does not say what True means"
        assert "key_padding_mask" in text, f"{name} does not say that this is the opposite"


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_takes_sizes_by_position_and_the_rest_by_keyword(name: str) -> None:
    sizes = {
        *("dims", "dim", "length", "recursions", "width", "widths", "out_features", "p", "modules"),
        *("encode", "readout"),
    }
    for parameter in inspect.signature(LAYERS[name]).parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            assert parameter.name in sizes, f"{name}: {parameter.name} should be keyword-only"


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_parameters_have_the_usual_switches(name: str) -> None:
    names = set(inspect.signature(LAYERS[name]).parameters)
    assert ("device" in names) == ("dtype" in names)
    assert ("device" in names) == hasattr(LAYERS[name], "reset_parameters")


def test_layers_survive_pickling() -> None:
    layer = crossfuse.RecursiveCrossModalAttention({"face": 3, "voice": 5}, 4)
    again = pickle.loads(pickle.dumps(layer))
    x = {"face": torch.randn(2, 4, 3), "voice": torch.randn(2, 4, 5)}
    assert torch.equal(layer(x)["face"], again(x)["face"])
