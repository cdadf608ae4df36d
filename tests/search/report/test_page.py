import json
from html.parser import HTMLParser

import pytest

from search.history import Evaluation, write_history
from search.report.content import make_content
from search.report.page import embedded, make_page
from search.report.sources import read_sources
from supernet.space import Arch

MARKUP = "<script>alert(1)<!-- & 'quoted'"


class Page(HTMLParser):
    """The text of a page's title, heading, and scripts."""

    def __init__(self):
        super().__init__()
        self.found = []
        self._tag = None

    def handle_starttag(self, tag, attributes):
        self._tag = tag

    def handle_data(self, data):
        if data.strip():
            self.found.append((self._tag, data))


def test_what_comes_from_a_run_is_never_markup(tmp_path):
    arch = Arch({"operation": "</script><b>", "width": 8})
    folder = tmp_path / MARKUP
    write_history(
        folder / "search.jsonl", {"strategy": MARKUP}, [Evaluation(arch, {"accuracy": 0.5}, {"macs": 1.0}, 0)]
    )
    content = make_content(read_sources([folder]))
    text = make_page(content, "plotly();")
    page = Page()
    page.feed(text)
    assert "alert(1)" not in [data for tag, data in page.found if tag == "script"]
    assert [data for tag, data in page.found if tag in ("title", "h1")] == [MARKUP, MARKUP]
    scripts = [data for tag, data in page.found if tag == "script"]
    assert len(scripts) == 3
    assert json.loads(scripts[0]) == json.loads(json.dumps(content))
    assert scripts[1] == "plotly();"


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "&lt;"])
def test_embedded_data_holds_no_markup_and_is_the_data(text):
    found = embedded({"name": text})
    assert not set(found) & set("<>&")
    assert json.loads(found) == {"name": text}


def test_the_page_needs_no_network(tmp_path):
    write_history(tmp_path / "search.jsonl", {}, [Evaluation(Arch({"width": 8}), {"accuracy": 0.5}, {"macs": 1.0}, 0)])
    text = make_page(make_content(read_sources([tmp_path])), "")
    assert "http" not in text.replace(str(tmp_path), "")
