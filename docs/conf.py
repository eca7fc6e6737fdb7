"""Configuration of Sphinx for `make docs`, which needs no network and treats warnings as errors."""

from __future__ import annotations

import os
from importlib.metadata import version as version_of

os.environ["RL_WARNINGS"] = "0"  # the tutorial runs with this environment
os.environ["RL_LOGGING_LEVEL"] = "WARNING"
os.environ["SDL_VIDEODRIVER"] = "dummy"  # pixels without a display
os.environ["OMP_NUM_THREADS"] = "1"  # small networks: on a busy machine more threads are ten times slower

project = "torchrl_rerun"
version = release = version_of("torchrl-rerun")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_design"]
exclude_patterns = ["_build"]
nitpicky = True
# Names of other libraries occur in signatures, and have no page here.
_OTHERS = (
    r"(torch|torchrl|tensordict|gymnasium|stable_baselines3|rerun|rerun_bindings|rr|rrb|numpy|np|npt|pyarrow|collections|datetime|os|pathlib)\..*"
    r"|NestedKey|TensorDict|TensorDictBase|Key|Floats|Channels|Place|DatasetEntry|EnvBase|Storage|TensorDictReplayBuffer"
)
_INNER = r"torchrl_rerun\.\w+\.(arrow|exact|streams|schema|history|following|states|notebook|compare|options|source)\..*"  # types in signatures that have no page
nitpick_ignore_regex = [("py:.*", _OTHERS), ("py:.*", _INNER)]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # notebooks are committed without outputs
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = "torchrl_rerun"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"tutorial": []}
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "logo": {"text": "torchrl_rerun"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_toc_level": 2,
    "show_prev_next": True,
    "header_links_before_dropdown": 6,
    "footer_start": ["sphinx-version"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}
