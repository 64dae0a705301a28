"""Model cards and licence facts: terms that must be carried along are, nothing is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.checkpoint import card
from rorqual.presets import preset


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, card.NOT_RECORDED),
        ({"README.md": "---\nlicense: apache-2.0\n---\n# Model"}, "apache-2.0"),
        ({"LICENSE": "MIT License\n\nCopyright"}, card.MIT),
        ({"LICENSE": "Modified MIT License\n"}, "Modified MIT"),
        ({"LICENSE-MODEL": "DEEPSEEK LICENSE AGREEMENT\nVersion 1.0", "LICENSE-CODE": "MIT License"}, card.DEEPSEEK),
        ({"LICENSE": "Some other text"}, "see LICENSE"),
        ({"LICENSE": b"\xff\xfe\x00"}, "see LICENSE"),
    ],
)
def test_terms_come_from_the_folders_own_files(tmp_path: Path, files: dict[str, str | bytes], name: str) -> None:
    for file, text in files.items():
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    found = card.read_licence(tmp_path)
    assert found.name == card.licence_of_folder(tmp_path) == name
    assert [file.name for file in found.files] == sorted(file for file in files if file.startswith("LICENSE"))
    assert bool(found.terms) == (name == card.DEEPSEEK)


def test_presets_have_what_is_on_record() -> None:
    assert card.licence_of_preset("v3_671b") == card.DEEPSEEK and card.licence_of_preset("r1") == card.MIT
    assert card.licence_of_preset("kimi_k2") == card.NOT_RECORDED
    assert card.licence_of_folder(Path("/nowhere")) == card.NOT_RECORDED


def test_a_card_says_what_it_is_and_carries_the_terms(tmp_path: Path) -> None:
    (tmp_path / "LICENSE-MODEL").write_text("DEEPSEEK LICENSE AGREEMENT")
    text = card.model_card(
        preset("v3_671b"),
        title="V3",
        origin="DeepSeek-V3",
        dtype="BF16",
        num_bytes=10**12,
        licence=card.read_licence(tmp_path),
        version="1",
    )
    for words in ("671B parameters, 36.6B active per token", "1 MTP module", "256 routed experts, 8 a token", "1 TB", "military use", "`LICENSE-MODEL`",
                  "vllm serve . --speculative-config", "`DeepSeek-V3`", "license: other"):  # fmt: skip
        assert words in text, words
    plain = card.model_card(
        preset("v2_lite_16b"), title="L", origin="x", dtype="BF16", num_bytes=1, licence=card.Licence(card.MIT), version="1"
    )
    assert "license: mit" in plain and "without MTP modules" in plain and "military" not in plain
