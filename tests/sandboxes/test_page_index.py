"""Local pages: corpora from folders and files, titles, BM25 with steady ties."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments.page_index import Page, PageIndex, read_corpus, split_sentences

pytest.importorskip("bm25s", reason='searching needs bm25s: pip install "kintsugi-agents[hotpotqa]"')


def pages(**texts: str) -> PageIndex:
    return PageIndex([Page(title=title, sentences=split_sentences(text)) for title, text in texts.items()])


def similar(index: PageIndex, query: str, number: int = 5) -> list[str]:
    return asyncio.run(index.similar(query, number))


def test_best_first_and_ties_in_order() -> None:
    index = pages(A="The sea is grey.", B="A river.", C="The sea, the sea is wide.", D="The sea is grey.")
    assert similar(index, "sea") == similar(index, "SEA?") == ["C", "A", "D"]
    assert similar(index, "grey sea", 1) == ["A"] and similar(index, "grey sea", 2) == ["A", "D"]
    assert similar(index, "river") == ["B"], "pages without any of the words are left out"
    assert similar(index, "B") == ["B"], "titles count"
    assert similar(index, "zzz") == similar(index, "?!") == similar(index, "") == []
    assert similar(PageIndex([]), "sea") == similar(pages(**{"!": "?"}), "sea") == []
    many = pages(**{f"P{n}": "the same words" for n in range(300)})
    assert similar(many, "same", 3) == ["P0", "P1", "P2"]


def test_titles() -> None:
    index = PageIndex([Page(title="Simon &amp; Simon", sentences=("one",)), Page(title="simon & Simon", sentences=("two",))])
    found = asyncio.run(index.page(" SIMON_&  simon "))
    assert found is not None and found.sentences == ("one",), "of two with one title the first counts"
    assert asyncio.run(index.page("Simon")) is None


def test_corpora(tmp_path: Path) -> None:
    lines = ({"title": "B", "sentences": ["One.", " Two."], "id": 5}, {"title": "C", "text": "X. Y."})
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "Grey_Sea.md").write_text("Cold. Deep.\nWide")
    (tmp_path / "a.txt").write_text("Hello.")
    (tmp_path / "other.csv").write_text("not read")
    found = read_corpus(tmp_path)
    assert [page.title for page in found] == ["a", "B", "C", "Grey Sea"]
    assert found[1].sentences == ("One.", " Two.") and found[2].sentences == ("X.", "Y.")
    assert found[3].sentences == ("Cold.", "Deep.", "Wide")
    assert read_corpus(tmp_path / "b.jsonl") == found[1:3]


@pytest.mark.parametrize("line", ['{"title": "x"}', '{"text": "x"}', "[]", "{", '{"title": "x", "sentences": [1]}'])
def test_wrong_corpora_are_one_sentence(tmp_path: Path, line: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"title": "a", "text": "b"}\n' + line)
    with pytest.raises(DataError, match=r"c\.jsonl, line 2: expected a \.jsonl file"):
        read_corpus(tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        read_corpus(tmp_path)
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(DataError, match="holds no pages"):
        read_corpus(tmp_path)


def test_sentences() -> None:
    text = 'He said "No." Then he left! At 5 p.m. it rained. Why?\nOne more'
    assert split_sentences(text) == ('He said "No.', "Then he left!", "At 5 p.m. it rained.", "Why?", "One more")
