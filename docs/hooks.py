"""MkDocs: pages may link to the repository's files outside docs/, which the site then holds too.

So a link leads to the same file on the site as in the repository. A folder becomes its name.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, *, config: Any, files: Files, **_: Any) -> str:
    def link(match: "re.Match[str]") -> str:
        text, uri = match.groups()
        if (ROOT / uri).is_dir():
            return f"{text} (`{uri}`)"
        if (ROOT / uri).is_file() and files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri)))
        return f"[{text}]({uri})"

    return re.sub(r"\[([^]]*)\]\(\.\./([^)#]+)\)", link, markdown)
