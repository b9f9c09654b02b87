"""A page of headings, text, tables and pictures, in Markdown and in HTML."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

CSS = """
:root { color-scheme: light dark; --line: #bbb; --soft: #f1f1f1 }
@media (prefers-color-scheme: dark) { :root { --line: #555; --soft: #2b2b2b } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em }
body, pre { overflow-wrap: anywhere }
h2 { margin-top: 2.5em; border-bottom: 1px solid var(--line) }
figure { margin: 1.5em 0 }
img { max-width: 100%; background: white }
.table { overflow-x: auto; margin: 1.5em 0 }
table { border-collapse: collapse; overflow-wrap: normal }
th, td { border: 1px solid var(--line); padding: .2em .6em; text-align: left; vertical-align: top }
th, pre { background: var(--soft) }
pre { padding: .6em; white-space: pre-wrap }
""".strip()


class Code(str):
    """Text that is shown as it is typed."""


# A page is a list of blocks: ("heading", level, text), ("text", text), ("table", header, rows), ("code", text) or
# ("image", file, caption). A cell of a table is text or Code.
Block = tuple


def markdown(blocks: Iterable[Block]) -> str:
    """A page in Markdown."""

    def text(value: str) -> str:
        if isinstance(value, Code):
            return f"`{value.replace('`', chr(39)).replace('|', chr(92) + '|')}`"
        return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", value)

    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(text(cell) for cell in cells)} |"

    parts = []
    for kind, *of in blocks:
        if kind == "heading":
            parts.append(f"{'#' * of[0]} {text(of[1])}")
        elif kind == "text":
            parts.append(text(of[0]))
        elif kind == "code":
            parts.append(f"```\n{of[0].rstrip()}\n```")
        elif kind == "image":
            parts.append(f"![{text(Path(of[0]).stem)}]({quote(of[0])})\n\n{text(of[1])}")
        else:
            parts.append("\n".join([row(of[0]), f"|{'---|' * len(of[0])}", *map(row, of[1])]))
    return "\n\n".join(parts) + "\n"


def web_page(blocks: Iterable[Block], title: str) -> str:
    """The same page in HTML."""

    def text(value: str) -> str:
        escaped = html.escape(value)
        return f"<code>{escaped}</code>" if isinstance(value, Code) else escaped

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{text(cell)}</{tag}>' for cell in cells)}</tr>"

    parts = [
        '<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>\n{CSS}\n</style>"
    ]
    for kind, *of in blocks:
        if kind == "heading":
            parts.append(f"<h{of[0]}>{text(of[1])}</h{of[0]}>")
        elif kind == "text":
            parts.append(f"<p>{text(of[0])}</p>")
        elif kind == "code":
            parts.append(f"<pre>{html.escape(of[0].rstrip())}</pre>")
        elif kind == "image":
            image = f'<a href="{quote(of[0])}"><img src="{quote(of[0])}" alt="{text(of[1])}"></a>'  # larger, on a phone
            parts.append(f"<figure>{image}<figcaption>{text(of[1])}</figcaption></figure>")
        else:
            rows = [row(of[0], "th"), *(row(cells, "td") for cells in of[1])]
            parts.append("\n".join(['<div class="table"><table>', *rows, "</table></div>"]))
    return "\n".join(parts) + "\n</html>\n"
