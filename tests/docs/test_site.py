"""The site has every page, its links lead somewhere, and what is generated is what the code writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import CHECKOUT
from tools import backends, public_names

DOCS = CHECKOUT / "docs"
REFERENCE = public_names.pages()  # written when the site is built
SOURCES = sorted(
    path
    for path in DOCS.rglob("*")
    if path.suffix in (".md", ".rst") and not path.is_relative_to(public_names.FOLDER)
)
MARKDOWN = [path for path in SOURCES if path.suffix == ".md"]
OUTSIDE = [CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md", CHECKOUT / "conformance/README.md"]
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ENTRY = re.compile(r"^   (?:[^<:\n]*<)?/?([\w./*-]+?)>?$", re.MULTILINE)


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


def entries(page: str) -> list[str]:
    """The pages that a page's tables of contents name; a pattern stands for those of a folder."""
    trees = page.split(".. toctree::")[1:]
    named = [found for tree in trees for found in _ENTRY.findall(tree)]
    folders = [one for one in named if one.endswith("/*")]
    listed = [name_of(path) for one in folders for path in DOCS.glob(f"{one}.md")]
    return [one for one in named if one not in folders] + listed


def anchors(path: Path) -> set[str]:
    """What a link may name behind ``#``: the headings of a page, as a code host writes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_has_one_place_in_the_navigation() -> None:
    listed = entries((DOCS / "index.rst").read_text())
    assert sorted(listed) == sorted(
        {name_of(path) for path in SOURCES} - {"index", "idea"} | {"reference/index"}
    )
    assert sorted([*entries(REFERENCE["index.rst"]), "index"]) == sorted(
        one[: -len(".rst")] for one in REFERENCE
    )


@pytest.mark.parametrize("page", [*MARKDOWN, *OUTSIDE], ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {link}: there is no such heading"
        if page.is_relative_to(DOCS):
            assert path.is_relative_to(DOCS), f"{page.name}: {link} is no page of the site"


def test_pages_of_backends_are_what_the_code_writes() -> None:
    written = {path.stem: path.read_text() for path in backends.FOLDER.iterdir()}
    assert written == backends.pages(), "run: python -m tools.backends"


@pytest.mark.parametrize("room", public_names.ROOMS)
def test_every_public_name_says_what_it_is(room: str) -> None:
    page = REFERENCE[f"{room}.rst"]
    for name in public_names.exported(room):
        assert f":: {room}.{name}\n" in page or f":py:obj:`{name} <" in page, name


def test_a_backend_without_a_record_claims_no_hardware() -> None:
    for name, page in backends.pages().items():
        assert "## Tested on" in page
        assert name == "cpu" or "On no hardware yet." in page or "](../results/" in page


@pytest.mark.thorough
def test_the_site_is_built_without_a_warning_and_can_be_searched(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-q",
        "-W",
        "--keep-going",
        str(DOCS),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert "classify_error" in (tmp_path / "searchindex.js").read_text()
    for page in SOURCES:
        if name_of(page) != "idea":
            assert (tmp_path / f"{name_of(page)}.html").exists()
    loaded = re.findall(r'(?:src|<link[^>]*href)="(https?:[^"]*)', (tmp_path / "index.html").read_text())
    assert loaded == []
