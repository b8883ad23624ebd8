"""Pages, read back as a browser would."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page as its elements: fails on tags that do not match, collects texts, attributes and pictures."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(text)

    def images(self, kind):
        """The data of the images whose type begins with `kind`."""
        found = (attributes["src"] for tag, attributes in self.elements if tag == "img")
        return [base64.b64decode(s.partition("base64,")[2]) for s in found if s.startswith(f"data:image/{kind}")]

    def pictures(self):
        return [Image.open(io.BytesIO(data)) for kind in ("png", "jpeg") for data in self.images(kind)]

    def assert_self_contained(self):
        for tag, attributes in self.elements:
            assert tag not in ("link", "iframe", "object", "base")
            assert not any(name.startswith("on") for name in attributes)
            assert attributes.get("src", "data:").startswith("data:")
            assert tag != "script" or not attributes
        assert not any("http" in attributes.get("href", "") for _, attributes in self.elements)
