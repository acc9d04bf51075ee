"""MediaWiki dumps: every page counted, each once, up to where the dump is whole."""

import bz2
import os

import pytest

from lm.corpus.config import SourceConfig
from lm.corpus.readers import wikipedia
from lm.corpus.readers.wiki_names import redirect_target
from lm.errors import DamagedFileError

SITE = """<siteinfo><sitename>W</sitename><dbname>testwiki</dbname><base>https://test.example.org/wiki/Main_Page</base>
<namespaces><namespace key="-1">Special</namespace><namespace key="0" /><namespace key="1">Talk</namespace></namespaces></siteinfo>"""


def page(
    number: int, title: str, text: str = "Some text.", namespace: int | None = 0, more: str = "", revision: str = ""
) -> str:
    ns = "" if namespace is None else f"<ns>{namespace}</ns>"
    return f"""<page><title>{title}</title>{ns}<id>{number}</id>{more}<revision><id>{number + 100}</id>
        <timestamp>2020-01-02T03:04:05Z</timestamp>{revision}<text xml:space="preserve">{text}</text></revision></page>"""


def dump(*pages: str, end: str = "</mediawiki>", site: str = SITE) -> str:
    xmlns = "http://www.mediawiki.org/xml/export-0.11/"
    return f'<mediawiki xmlns="{xmlns}" version="0.11" xml:lang="en">{site}{"".join(pages)}{end}'


def read(tmp_path, content: str | bytes, skip=None, **options):
    path = tmp_path / "dump.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse = lambda where, reason: pytest.fail(f"{where}: {reason}")  # noqa: E731
    return wikipedia.read(str(path), SourceConfig(reader="wikipedia", **options), skip or refuse)


def test_a_page_is_a_record_with_its_place_in_the_wiki(tmp_path):
    [record] = read(tmp_path, dump(page(12, "Foo bar/Ü?", "&lt;b&gt; [[x]]")))
    assert record.id == "testwiki/Foo bar/Ü?" and record.text == "<b> [[x]]"
    assert record.url == "https://test.example.org/wiki/Foo_bar/%C3%9C%3F"
    assert record.metadata == {
        "title": "Foo bar/Ü?", "page": 12, "namespace": 0, "revision": 112, "timestamp": "2020-01-02T03:04:05Z",
    }  # fmt: skip


def test_pages_that_are_dropped_say_why(tmp_path):
    pages = [
        page(1, "Kept"),
        page(2, "Marked", "#REDIRECT [[Kept]]", more='<redirect title="Kept" />'),
        page(3, "Unmarked", "#Weiterleitung [[Kept#Part|x]]"),
        page(4, "Talk:Kept", namespace=1),
        page(5, "Styles", "a {}", revision="<model>css</model>"),
    ]
    records = list(read(tmp_path, dump(*pages)))
    assert [record.metadata.get("drop") for record in records] == [
        None,
        {"rule": "redirect", "value": "Kept"},
        {"rule": "redirect", "value": "Kept#Part"},
        {"rule": "namespace", "value": 1},
        {"rule": "model", "value": "css"},
    ]
    assert records[3].text == ""
    talk = list(read(tmp_path, dump(*pages), namespaces=(0, 1)))[3]
    assert talk.text and "drop" not in talk.metadata


@pytest.mark.parametrize(
    "text, target",
    [
        ("#REDIRECT [[Foo]]", "Foo"),
        ("\n #redirect: [[Foo|bar]] {{R from x}}", "Foo"),
        ("#перенаправление [[Фу]]", "Фу"),
        ("#転送 [[富]]", "富"),
        ("#REDIRECTION[[Foo]]", "Foo"),
        ("#YÖNLENDİRME [[Foo]]", "Foo"),
        ("# [[Foo]] is first of a list", None),
        ("#first [[Foo]]", None),
        ("Text before #REDIRECT [[Foo]]", None),
    ],
)
def test_redirects_are_known_in_the_languages_of_wikis(text, target):
    assert redirect_target(text) == target


def test_the_last_revision_of_a_page_is_read(tmp_path):
    both = page(1, "A").replace("</page>", "<revision><id>7</id><text>newer</text></revision></page>")
    [record] = read(tmp_path, dump(both))
    assert record.text == "newer" and record.metadata["revision"] == 7


def test_namespaces_of_dumps_that_do_not_give_them_are_in_the_titles(tmp_path):
    pages = [page(1, "Talk:A", namespace=None), page(2, "Other: B", namespace=None)]
    records = list(read(tmp_path, dump(*pages)))
    assert [record.metadata["namespace"] for record in records] == [1, 0]


def test_a_page_that_stands_there_twice_has_two_ids(tmp_path):
    records = read(tmp_path, dump(page(1, "A"), page(2, "B"), page(1, "A"), page(1, "A"), page(3, "C")))
    assert [record.id for record in records] == [f"testwiki/{name}" for name in ("A", "B", "A#3", "A#4", "C")]


def test_unknown_elements_are_passed_over(tmp_path):
    [record] = read(tmp_path, dump("<logitem/>", page(1, "A", more="<new>1</new>", revision="<new>2</new>")))
    assert record.text == "Some text."


def test_a_page_that_is_no_page_is_skipped_and_the_rest_read(tmp_path):
    skipped = []
    broken = ["<page><title>No id</title></page>", page(1, "B").replace("<ns>0", "<ns>zero")]
    records = list(read(tmp_path, dump(*broken, page(2, "C")), skip=lambda *told: skipped.append(told)))
    assert [record.metadata["title"] for record in records] == ["C"]
    assert ["No id" in where or where.endswith(": B") for where, _ in skipped] == [True, True]


@pytest.mark.parametrize(
    "end", ["", "<page><title>C</title><id>3", "<page></title></page></mediawiki>", "\x01</mediawiki>"]
)
def test_broken_xml_is_an_error_after_the_pages_before_it(tmp_path, end):
    records = []
    with pytest.raises(DamagedFileError, match="damaged after page testwiki/B: broken XML"):
        records.extend(read(tmp_path, dump(page(1, "A"), page(2, "B"), end=end)))
    assert len(records) == 2


def test_a_truncated_archive_gives_the_pages_that_it_holds(tmp_path):
    content = dump(*(page(number, f"Page {number}", os.urandom(4000).hex()) for number in range(100)))
    compressed = bz2.compress(content.encode(), compresslevel=1)
    records = []
    with pytest.raises(DamagedFileError, match="truncated"):
        records.extend(read(tmp_path, compressed[: len(compressed) // 2]))
    assert 20 < len(records) < 60


def test_utf_16_and_dumps_without_a_description_of_the_site_are_read(tmp_path):
    content = '<?xml version="1.0" encoding="utf-16"?>' + dump(page(1, "Бъл", "текст"), site="")
    [record] = read(tmp_path, content.encode("utf-16"))
    assert (record.id, record.text, record.url) == ("wiki/Бъл", "текст", None)


def test_an_empty_file_is_damaged(tmp_path):
    with pytest.raises(DamagedFileError, match="before its first page"):
        list(read(tmp_path, b""))


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name, pages, redirects, namespaces",
    [
        ("enwiki-pages-articles1-shortened.xml.bz2", 206, 100, 0),
        ("tinywiki-pages-articles.xml", 8, 1, 0),
        ("mwxml-dump.xml", 2, 0, 1),
    ],
)
def test_real_dumps_have_the_pages_that_they_have(real_data, name, pages, redirects, namespaces):
    path = os.path.join(real_data, "wiki", name)
    records = list(wikipedia.read(path, SourceConfig(reader="wikipedia"), lambda *told: pytest.fail(str(told))))
    rules = [record.metadata.get("drop", {}).get("rule") for record in records]
    assert (len(rules), rules.count("redirect"), rules.count("namespace")) == (pages, redirects, namespaces)
    assert len({record.id for record in records}) == pages
