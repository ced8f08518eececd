"""Citations: read from cards, refused where they do not say where a paper is found, one file over all methods."""

import re
from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.experiment.folder import all_methods
from reproduce.report.citation import bibliography, citations
from reproduce.report.method_card import MethodCard

PAPER = """@inproceedings{nobody2020,
  author = {N{\\'o} Body and {The {Group}}},
  title = {A title, with = and
           two lines},
  year = {2020},
  doi = {10.1234/none.of_these(1)}
}"""


def section(*entries, before="", after=""):
    return before + "```bibtex\n" + "\n\n".join(entries) + "\n```" + after


def test_entries_are_read_with_their_braces_and_lines():
    (found,) = citations(section(PAPER, before="A sentence.\n\n", after="\n\nAnother = {one}."), "card.md")
    assert (found.kind, found.key) == ("inproceedings", "nobody2020")
    assert found.fields == {
        "author": "N{\\'o} Body and {The {Group}}",
        "title": "A title, with = and two lines",
        "year": "2020",
        "doi": "10.1234/none.of_these(1)",
    }
    assert citations(section(found.bibtex), "card.md") == (found,)


def test_several_entries_and_none():
    other = PAPER.replace("nobody2020", "other2020")
    assert [one.key for one in citations(section(PAPER, other), "c")] == ["nobody2020", "other2020"]
    assert citations("None: ours.", "c") == ()
    assert [one.key for one in citations("None: ours, after\n\n" + section(PAPER), "c")] == ["nobody2020"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no BibTeX entry"),
        ("Somebody, 2020.", "no BibTeX entry"),
        (section(PAPER.replace("  year = {2020},\n", "")), "citation nobody2020: has no year"),
        (section(PAPER.replace("doi", "pages")), "has neither doi nor eprint"),
        (section(PAPER.replace("10.1234", "https://doi.org/10.1234")), "doi = 'https://doi.org"),
        (section(PAPER.replace("doi = {10.1234/none.of_these(1)}", "eprint = {2002.05366}")), "archiveprefix"),
        (section(PAPER.replace("{2020}", "{soon}")), "year = 'soon'"),
        (section(PAPER.replace("{A title", '"A title')), "citation nobody2020: expected `name = {value}`"),
        (section(PAPER[:-40]), "citation nobody2020: expected `name = {value}`"),
        (section("nobody2020"), "cannot be read as BibTeX from 'nobody2020'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, said):
    with pytest.raises(UserError) as error:
        citations(text, "methods/x/card.md")
    message = str(error.value)
    assert message.startswith("methods/x/card.md: ")
    assert said in message
    assert "\n" not in message


def test_a_card_says_it_when_it_is_read(tmp_path):
    (tmp_path / "card.md").write_text("# X\n\n## Idea\nOne.\n\n## Citation\nSomebody, 2020.\n", "utf-8")
    with pytest.raises(UserError, match="no BibTeX entry in '## Citation'"):
        MethodCard(tmp_path)
    (tmp_path / "card.md").write_text("# X\n\n## Idea\nOne.\n", "utf-8")
    with pytest.raises(UserError, match="no BibTeX entry in '## Citation'"):
        MethodCard(tmp_path).citations  # noqa: B018


def test_one_file_holds_each_entry_once():
    (one,) = citations(section(PAPER), "a")
    (other,) = citations(section(PAPER.replace("nobody2020", "another2020")), "b")
    text = bibliography({"per": [one], "vcl": [other, one]})
    assert re.findall(r"^(% .*|@.*)$", text, re.M) == [
        "% vcl",
        "@inproceedings{another2020,",
        "% per, vcl",
        "@inproceedings{nobody2020,",
    ]
    (changed,) = citations(section(PAPER.replace("{2020}", "{2021}")), "b")
    with pytest.raises(UserError, match="the cards of vcl and per: citation nobody2020 differs"):
        bibliography({"per": [one], "vcl": [changed]})


def test_every_card_says_where_its_papers_are_found():
    by_method = {folder.name: MethodCard(folder.path).citations for folder in all_methods().values()}
    assert {name for name, cited in by_method.items() if not cited} == {"vanilla"}
    found = bibliography(by_method)
    for name, cited in by_method.items():
        where = Path(name)
        assert all({"doi", "eprint"} & entry.fields.keys() or "note" in entry.fields for entry in cited), where
    assert found.count("\n@") + found.startswith("@") == len({one.key for cited in by_method.values() for one in cited})
