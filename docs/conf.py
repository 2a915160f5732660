"""Configuration of Sphinx: ``make docs`` builds this folder into ``_build/html`` without network access."""

from importlib.metadata import version as version_of

project = "esplug"
author = "the esplug authors"
project_copyright = "the esplug authors"
version = release = version_of("esplug")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4

highlight_language = "text"  # for blocks without a language: commands, listings

html_theme = "furo"
html_title = f"esplug {version}"
html_static_path = ["_static"]
html_css_files = ["esplug.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e4f", "color-brand-content": "#0b6e4f"},
    "dark_css_variables": {"color-brand-primary": "#5ad1a5", "color-brand-content": "#5ad1a5"},
}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_use_rtype = False
# Every esplug name must resolve. Names of other packages would need their inventories from the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!esplug\b).*"),
    ("py:mod", r"esplug\..*"),  # rooms without a page here
    ("py:class", r"esplug\.engines\..*Key"),  # a type variable
]
