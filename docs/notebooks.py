"""A hook of mkdocs: a notebook with its outputs becomes a page like any other.

As Markdown it has the site's own style, and mkdocs checks its links and turns them into those of
the site, as it does on every page.
"""

import json
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


class NotebookPage(File):
    """A notebook that mkdocs takes for a file of Markdown."""

    def is_documentation_page(self) -> bool:
        """It is rendered, not copied."""
        return True

    @property
    def content_string(self) -> str:
        """Its cells and their outputs, in Markdown."""
        cells = json.loads(super().content_string)["cells"]
        return "\n\n".join(block for cell in cells for block in _blocks(cell))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Replaces each notebook by its page."""
    for file in files.media_files():
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            files.append(
                NotebookPage(
                    file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls
                )
            )


def _blocks(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"~~~python\n{source}\n~~~"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![The figure drawn above](data:image/png;base64,{data['image/png'].strip()})"
        else:
            text = "".join(output.get("text", data.get("text/plain", "")))
            yield f"~~~{{.text .output}}\n{text.rstrip()}\n~~~"
