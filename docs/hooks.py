"""What mkdocs makes of the pages beside this file, so that they read the same in the repository and on the site.

- The README is the first page. A file of the repository that a page links to, such as `../conf/spark-yarn.conf`, is
  part of the site.
- `<!-- options of train -->` becomes a table of the options of `train`, read from `seedlings_spark.config`.
- Nothing on the site is loaded from another one: a page that would fails the build.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from seedlings_spark import config as options  # noqa: E402

README = "index.md"
PAGES_OF_THE_REPOSITORY = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
_OPTIONS = re.compile(r"<!-- options of (\w+) -->")
_LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: Any) -> Files:
    """Add the README, further pages of the repository, and what any page links to."""
    files.append(File.generated(config, README, abs_src_path=str(ROOT / "README.md")))
    for name in PAGES_OF_THE_REPOSITORY:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        for link in _LINK.findall(Path(str(page.abs_src_path)).read_text(encoding="utf-8")):
            target = _on_the_site(link)
            if (ROOT / target).is_file() and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put links and options in."""
    linked = _LINK.sub(lambda link: _on_the_site(link[1]), markdown)
    return _OPTIONS.sub(lambda marker: options_table(marker[1]), linked)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Refuse what is loaded from another site."""
    return _checked(html, page)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse what the theme loads from another site."""
    return _checked(output, page)


def options_table(job: str) -> str:
    """The options of a job in the order of `--help`, as a table in Markdown."""
    rows = ["| option | what it is | default |", "| --- | --- | --- |"]
    for field in dataclasses.fields(options.JOBS[job]):
        limits = field.metadata
        text = limits["text"][:1].upper() + limits["text"][1:] + "."
        if limits["choices"]:
            choices = ", ".join(f"`{choice}`" if choice else "none" for choice in limits["choices"])
            text += f" {'Any' if isinstance(field.default, tuple) else 'One'} of {choices}."
        if bounds := options.range_of(limits):
            text += f" {bounds[:1].upper()}{bounds[1:]}."
        if limits["reason"] and not limits["required"]:
            text += f" *Why this default: {limits['reason']}.*"
        name = field.name if field.name == "action" else options.flag_of(field.name)
        default = "required" if limits["required"] else _default(field.default)
        rows.append(f"| `{name}` | {text.replace('|', chr(92) + '|')} | {default} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    items = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if not any(items) else f"`{' '.join(items)}`"


def _on_the_site(link: str) -> str:
    """Where a link of a page leads there: all pages lie beside each other, above other files of the repository."""
    return link.removeprefix("../").removeprefix("docs/")


def _checked(html: str, page: Any) -> str:
    if found := _LOADED.search(html):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return html
