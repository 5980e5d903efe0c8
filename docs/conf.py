"""How Sphinx builds these pages: MyST markdown, one plain theme, nothing from the network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # tables.py beside this file, and the four rooms

project = "Stillhouse"
author = "The Stillhouse authors"
project_copyright = "2026, The Stillhouse authors"
extensions = ["myst_parser", "tables"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "alabaster"
html_theme_options = {"description": "Rows that know where they came from", "fixed_sidebar": True, "page_width": "68em"}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_copy_source = False
