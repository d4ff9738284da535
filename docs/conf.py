"""Settings of the documentation site: ``just docs`` builds it with Sphinx, warnings as errors."""

import shutil
from pathlib import Path
from typing import Any

from pipeline import __version__

project = "duet-t5"
author = copyright = "The duet-t5 authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # a page may begin a section two levels down

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "duet-t5"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_extra_path = ["llms.txt"]
pygments_style = "friendly"
pygments_dark_style = "github-dark"

DOCS = Path(__file__).parent


def copy_sources(app: Any, error: Exception | None) -> None:
    """Put each page's Markdown beside its HTML: ``llms.txt`` links to these."""
    if error is None and app.builder.name == "html":
        for name in app.env.found_docs:
            target = Path(app.outdir) / f"{name}.md"
            shutil.copyfile(DOCS / f"{name}.md", target)


def hide_signature(_: Any, what: str, name: str, *__: Any) -> tuple[str, str] | None:
    """Leave the signature out where it is that of ``DuetError``."""
    return ("", "") if what == "exception" and not name.endswith(".DuetError") else None


def setup(app: Any) -> None:
    """Register what is done during and after a build."""
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("build-finished", copy_sources)
