"""Reads a report page in tests, without the project's code: marked numbers with their sources, links, rows of tables."""

import csv
import json
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects marked numbers, links to other files, and the text of traced parts without their marked numbers."""

    def __init__(self, text):
        super().__init__()
        self.numbers, self.links, self.rest = [], [], []
        self._stack = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href", "srcset") if name in values]
        if tag not in VOID:
            self._stack.append((tag, values))
        if values.get("class") == "n":
            self.numbers.append({**values, "text": ""})

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        attributes = [values for _, values in self._stack]
        if any(values.get("class") == "n" for values in attributes):
            self.numbers[-1]["text"] += data
        elif any("data-traced" in v for v in attributes) and not any(
            "data-words" in v or "data-scale" in v for v in attributes
        ):
            self.rest.append(data)


def value_at(root, source):
    """The value that a source such as scores/deltaz/summary.json#suites/... names, read without the project's code."""
    file, place = source.split("#")
    keys = [key.replace("~2", " ").replace("~1", "/").replace("~0", "~") for key in place.split("/")]
    if file.endswith(".json"):
        node = json.loads((root / file).read_text())
        for key in keys:
            node = node[int(key)] if isinstance(node, list) else node[key]
        return node
    columns = ("sample", "region", "alignment")
    if file.endswith("_cameras.csv"):
        columns = ("sample",)
    elif file.endswith("curve.csv"):
        columns = ("step",)
    with (root / file).open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if [r[name] for name in columns] == keys[:-1]]
    assert len(rows) == 1
    return float(rows[0][keys[-1]])


def rows_of(html, caption):
    table = html[html.index(caption) :]
    rows = re.findall(r"<tr.*?</tr>", table[: table.index("</table>")], re.DOTALL)[1:]
    return {re.search(r'<th scope="row">(\w+)', row)[1]: row for row in rows}
