"""Apache directory listings, as SUN3D's server gives them."""

import re
from dataclasses import dataclass
from html import unescape
from urllib.parse import unquote, urljoin, urlsplit

from plumbline.errors import DataError

LINK = re.compile(r"""<a\s[^>]*?href=["']([^"']*)["'][^>]*>.*?</a>(.*?)(?=<a\s|$)""", re.IGNORECASE | re.DOTALL)
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True)
class Entry:
    """One line of a listing; `size` in bytes as far as the listing rounds it, None where it says none."""

    name: str
    is_folder: bool
    size: int | None


def parse_listing(html: str, *, url: str) -> list[Entry]:
    """Files and folders of a listing read at `url`, in its order, each once.

    Sort links (`?C=N;O=D`), the parent folder, links elsewhere and mirrored index pages (`index.html@C=N;O=D`) are left
    out. DataError when the page is no listing.
    """
    title = page_title(html)
    if not title.startswith("Index of"):
        raise DataError(f"{url}: no directory listing (its title is {title[:80]!r}). Check the URL in a browser.")
    entries: dict[str, Entry] = {}
    for href, text in _links(html):
        name = _name(href, url)
        if name and not name.startswith("index.html"):
            entries.setdefault(name, Entry(name.rstrip("/"), name.endswith("/"), _size(text)))
    return list(entries.values())


def page_title(html: str) -> str:
    """The title of a web page, on one line; "" when it has none."""
    found = re.search(r"<title[^>]*>(.*?)</title>", html, re.IGNORECASE | re.DOTALL)
    return " ".join(unescape(found[1]).split()) if found else ""


def _links(html: str) -> list[tuple[str, str]]:
    """Each link's address with the plain text between its end and the next link."""
    return [(unescape(row[1]), unescape(re.sub(r"<[^>]*>", " ", row[2]))) for row in LINK.finditer(html)]


def _name(href: str, url: str) -> str | None:
    """The entry's name, with a "/" at the end of a folder's, or None for a link that leads elsewhere."""
    base, target = urlsplit(url), urlsplit(urljoin(url, href))
    folder = base.path if base.path.endswith("/") else base.path + "/"
    if target.query or target.netloc != base.netloc or not target.path.startswith(folder):
        return None
    name = unquote(target.path[len(folder) :])
    plain = name.rstrip("/")
    return name if plain and plain not in (".", "..") and not set("/\\\0") & set(plain) else None


def _size(text: str) -> int | None:
    found = re.search(r"(?:^|\s)(\d+(?:\.\d+)?)([KMGT]?)\s*$", text.replace("\xa0", " "))
    return int(float(found[1]) * UNITS[found[2]]) if found else None
