"""One self-contained HTML page of all figures in a folder, and of what is said before them."""

import base64
import html
from typing import NamedTuple

_STYLE = """
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
header, section { max-width: 72rem; margin: 0 auto; padding: 1rem; box-sizing: border-box; }
h1 { font-size: 1.4rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: .5rem 0; }
nav a { display: inline-block; padding: .25rem .75rem .25rem 0; }
p { max-width: 46rem; margin: .5rem 0; }
figure { margin: 0; overflow-x: auto; border: 1px solid #ddd; }
figure img { display: block; max-width: none; height: auto; }
@media (min-width: 60rem) { figure img { max-width: 100%; } }
section { border-top: 1px solid #ddd; }
section.wide { max-width: none; }
table { border-collapse: collapse; font-size: .8rem; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
"""


class Figure(NamedTuple):
  """A figure as it was written; `png` is the file's content, `width` is in CSS pixels."""

  name: str
  title: str
  caption: str
  png: bytes
  width: int


def build(figures: list[Figure], title: str, first: str = "") -> str:
  """The page: links, then each figure with its caption and its arrays beside it.

  Args:
    figures: in this order; a name with a folder in it is the way to the figure's files.
    title: of the page.
    first: HTML that stands before the figures.
  """
  links = " ".join(f'<a href="#{f.name}">{html.escape(f.title)}</a>' for f in figures)
  sections = "\n".join(map(_section, figures))
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1><nav>{links}</nav></header>
{first}
{sections}
</body>
</html>
"""


def _section(figure: Figure) -> str:
  name, title, caption = figure.name, html.escape(figure.title), html.escape(figure.caption)
  source = f"data:image/png;base64,{base64.b64encode(figure.png).decode()}"
  return f"""<section id="{name}">
<h2>{title}</h2>
<p>{caption}</p>
<figure><a href="{name}.png"><img src="{source}" alt="{title}" width="{figure.width}"></a></figure>
<p><a href="{name}.npz">{name}.npz</a>: the raw, signed arrays.</p>
</section>"""
