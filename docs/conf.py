"""The documentation: `make docs` builds it from what is installed in the virtual environment."""

import sys
from pathlib import Path

import ringmain

sys.path.insert(0, str(Path(__file__).parent))

project = "ringmain"
copyright = "the authors of ringmain"  # noqa: A001
version = release = ringmain.__version__
html_title = f"ringmain {release}"
html_theme = "furo"
html_static_path = [it.name for it in Path(__file__).parent.glob("_static")]  # there once a picture was drawn
html_show_copyright = False
# Nothing on a page is fetched from elsewhere: the theme's own fonts are those of the reader's system.
html_theme_options = {"sidebar_hide_name": False}

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
add_module_names = False
