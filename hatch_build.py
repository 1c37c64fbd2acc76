"""Links for PyPI's page, made when the package is built: there is no folder beside it for relative ones to lead to."""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://openreview.net/forum?id=zSTgrLkpRi"


def absolute(text: str, repository: str) -> str:
    """Markdown whose relative links lead into `repository`, such as https://github.com/OWNER/NAME."""

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        return f"{text}({repository}/{'raw' if text.startswith('!') else 'blob'}/HEAD/{target})"

    return re.sub(r"(!?\[[^\[\]]*\])\((?!https?://|#)([^()]+)\)", link, text)


class Links(MetadataHookInterface):
    """Fills in `readme` and `urls`. $REPOSITORY is the address that the checkout is published at, if it is."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling."""
        text, repository = Path(self.root, "README.md").read_text(), os.environ.get("REPOSITORY", "")
        metadata["urls"] = {"Paper": PAPER}
        if repository:
            metadata["urls"] |= {
                "Repository": repository,
                "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
            text = absolute(text, repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
