"""Numbers that carry where they come from, so that a page of them can be traced back to files."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

DECIMALS = ".4f"
SHARE = ".1%"
SIGNED_SHARE = "+.1%"
SECONDS = ".3g"
COUNT = "d"
LARGE = ",.0f"
MILLISECONDS = "milliseconds"


@dataclass(frozen=True)
class Number:
    """A value as it is shown, and its source.

    `source` names files relative to the project's root and a place in each, `scores/deltaz/summary.json#suites/dtu/...`
    (several are separated by spaces); `kind` says what is done with them: value, change (first over second, minus one),
    difference (first minus second), mean (of all), milliseconds (of seconds), paired.mean, paired.low, paired.high (of first
    minus second), count. `spec` is the Python format of the text.
    """

    value: float | int
    source: str
    spec: str = DECIMALS
    kind: str = "value"

    def __str__(self) -> str:
        return format(int(self.value) if self.spec == COUNT else self.value, self.spec)

    def __html__(self) -> str:
        """The text, marked with its source: what jinja2 writes into a page without escaping again."""
        marks = f'data-source="{escape(self.source)}" data-kind="{self.kind}" data-format="{escape(self.spec)}"'
        return f'<span class="n" {marks}>{escape(str(self))}</span>'


def lookup(content: Mapping[str, Any], file: str, *keys: str, spec: str = DECIMALS) -> Number | None:
    """The number below `keys` in a JSON file's `content`, or None where there is none."""
    node: Any = content
    for key in keys:
        if not isinstance(node, Mapping) or node.get(key) is None:
            return None
        node = node[key]
    return Number(node, pointer(file, *keys), spec)


def pointer(file: str, *keys: str) -> str:
    """A place in a JSON file as `file#key/key`, slashes and spaces inside keys escaped (RFC 6901's ~1; ~2 for a space)."""
    return f"{file}#" + "/".join(key.replace("~", "~0").replace("/", "~1").replace(" ", "~2") for key in keys)
