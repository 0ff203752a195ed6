"""The documentation's settings. Build it with ``make docs``, or any other way Sphinx is run."""

from importlib.metadata import version as _version

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx import addnodes
from sphinx.util import logging

project = "crossfuse"
author = "The crossfuse authors"
copyright = "2026, the crossfuse authors, MIT licence"
release = version = _version("crossfuse")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "notebooks/smartwatch.md"]  # the notebook beside it is shown
nb_execution_mode = "off"  # notebooks keep their outputs; the tests execute them
nb_mime_priority_overrides = [("*", "image/svg+xml", 0)]
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs are not copied
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"crossfuse {release}"
html_static_path = ["_static"]
html_css_files = ["crossfuse.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False  # else every page repeats torch.nn.Module's
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
add_module_names = False
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape"]

# Type variables: an output can be None exactly where the input can; a compiled module is still one.
nitpick_ignore = [
    ("py:class", "crossfuse._modalities.T"),
    ("py:class", "crossfuse._compile.F"),
    ("py:class", "crossfuse.inspection.S"),
    ("py:class", "S"),
]
# The default build fetches nothing. sphinx-build -t online also reads the inventories, which link
# names of Python and torch.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
if tags.has("online"):  # type: ignore[name-defined]  # noqa: F821 - Sphinx puts tags here
    extensions.append("sphinx.ext.intersphinx")
nitpick_ignore_regex = [
    (r"py:.*", r"torch\..*"),
    (r"py:.*", r"(collections|typing)\..*"),
    (r"py:(class|exc)", r"(int|str|float|bool|object|dict|list|tuple|None|\w+Error)"),
]

_log = logging.getLogger(__name__)
_converter = LatexToMathML(ignore_unknown_commands=False)


def _mathml(translator, node, *, block):
    """Writes MathML, which browsers set themselves: no script, nothing fetched."""
    # Formulas that share a line wrap to one below the other on a narrow page.
    parts = node.astext().split(r"\qquad") if block else [node.astext()]
    set_parts = "".join(_set(translator, node, part, block=block) for part in parts)
    translator.body.append(f'<div class="formula">{set_parts}</div>' if block else set_parts)
    raise nodes.SkipNode


def _set(translator, node, formula, *, block):
    try:
        return _converter.convert_with_local_state(formula, displaystyle=block)
    except LatexError as error:
        _log.warning("cannot set this formula: %s", error, location=node)
        return f"<code>{translator.encode(formula)}</code>"


def _leave_return_to_overloads(app, domain, objtype, content):
    """Of several signatures each shows its return type; that of the implementation is ``Any``."""
    signatures = [node for node in content.parent if isinstance(node, addnodes.desc_signature)]
    if len(signatures) > 1:
        module, name = signatures[0]["module"], signatures[0]["fullname"]
        annotations = app.env.current_document.autodoc_annotations
        annotations.get(f"{module}.{name}" if module else name, {}).pop("return", None)


def _shorten_type_variable(app, what, name, obj, options, lines):
    """Writes S, which the class describes, in the types of attributes."""
    lines[:] = [line.replace("crossfuse.inspection.S", "S") for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", _shorten_type_variable, priority=600)
    # Before autodoc's own handler, which writes the return type into the description.
    app.connect("object-description-transform", _leave_return_to_overloads, priority=100)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda translator, node: _mathml(translator, node, block=False), None),
        block_renderers=(lambda translator, node: _mathml(translator, node, block=True), None),
    )
