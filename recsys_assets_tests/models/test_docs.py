"""docs/models.md tells of every member and every option."""

import re
from pathlib import Path

import pytest

from recsys_assets.models import MEMBERS
from recsys_assets.settings import Settings

DOCS = (Path(__file__).parent.parent.parent / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(MEMBERS))
def test_every_option_stands_in_the_section_of_its_model(name: str) -> None:
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^##)", DOCS, re.MULTILINE | re.DOTALL)
    table = "\n".join(line for line in section.splitlines() if line.startswith("| `"))
    options = set(type(getattr(Settings(home=Path("nowhere")), name)).model_fields)
    assert set(re.findall(r"`([a-z_]+)`", table)) == options


def test_the_settings_it_names_exist() -> None:
    sections = Settings(home=Path("nowhere"))
    named = re.findall(r"`(search|training|recommend)\.([a-z_]+)`", DOCS)
    assert {("search", option) for option in type(sections.search).model_fields} <= set(named)
    for section, option in named:
        assert option in type(getattr(sections, section)).model_fields
