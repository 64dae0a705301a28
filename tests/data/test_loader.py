"""Samples: every token of every epoch once, the same at any number of ranks and after any interruption (F28, F29, F31)."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rorqual.data.config import DataConfig
from rorqual.data.loader import PackedDataset, Piece
from rorqual.errors import ConfigError, DataError
from rorqual.tokenizer import bpe
from tests.data.folders import edit, write_folder

NO_FIM = DataConfig(fim_rate=0.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bpe.Tokenizer:
    texts = ["def f(x):\n    return x + 1\n", "the quick brown fox jumps over the lazy dog\n"] * 3
    return bpe.train(texts, 320, tmp_path_factory.mktemp("tokenizer"))


def build(root: Path, tokenizer: bpe.Tokenizer, train: dict[str, list[list[list[int]]]], **kwargs: object) -> Path:
    tokenizer.save(root / "tokenizer")
    held_out = {
        name: ([tokenizer.encode(t) for t in texts], "".join(texts).encode())
        for name, texts in {"code": ["x = 1\n", "été\n", "def"]}.items()
    }
    options = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "tokenizer": tokenizer.fingerprint, **kwargs}
    return write_folder(root, train, held_out, **options)  # type: ignore[arg-type]


def numbered(count: int, base: int, longest: int = 9) -> list[list[int]]:
    """Documents whose tokens name them: document i is [base + i] * its length, 1 to `longest` tokens."""
    return [[base + i] * (1 + i * 7 % longest) for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: bpe.Tokenizer) -> Path:
    code, prose = numbered(40, 10), numbered(7, 100)
    return build(tmp_path, tokenizer, {"code": [code[:15], code[15:16], [], code[16:]], "prose": [prose]})


def targets_by_epoch(pieces: list[Piece]) -> dict[tuple[str, int], Counter[tuple[int, int]]]:
    out: dict[tuple[str, int], Counter[tuple[int, int]]] = {}
    for piece in pieces:
        out.setdefault((piece.source, piece.epoch), Counter()).update((piece.document, at) for at in range(piece.start, piece.stop))
    return out


def test_rows_are_the_stream_cut_with_one_token_overlap(folder: Path, tokenizer: bpe.Tokenizer) -> None:
    data = PackedDataset(folder, DataConfig({"code": 1.0}, fim_rate=0.0, shuffle_rows=1), 16)
    batch = data.batch(0, 30)
    assert batch.tokens.shape == (30, 17) and batch.tokens.dtype == np.int64
    assert (batch.tokens[1:, 0] == batch.tokens[:-1, -1]).all()
    stream = batch.tokens[:, :-1].ravel().tolist()
    documents = {tuple(d): i for i, d in enumerate(numbered(40, 10))}
    order, at = [], 0
    while len(order) < 40:
        end = stream.index(tokenizer.eos_id, at)
        order.append(documents[tuple(stream[at:end])])
        at = end + 1
    assert sorted(order) == list(range(40)) and order != sorted(order)
    assert [p.document for row in batch.documents for p in row if p.start == 0 and p.epoch == 0] == order


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_every_epoch_holds_every_token_once(folder: Path, rate: float) -> None:
    data = PackedDataset(folder, DataConfig({"code": 3.0, "prose": 1.0}, fim_rate=rate, shuffle_rows=1), 16)
    batch = data.batch(0, 200)
    lengths = {"code": [len(d) for d in numbered(40, 10)], "prose": [len(d) for d in numbered(7, 100)]}
    whole = 0
    epochs = targets_by_epoch([p for row in batch.documents for p in row])
    for (source, epoch), seen in epochs.items():
        assert set(seen.values()) == {1}
        if (source, epoch + 1) in epochs:  # complete
            whole += 1
            ends = Counter(document for document, _ in seen)
            assert all(ends[i] in (n + 1, n + 4) for i, n in enumerate(lengths[source]))
            rearranged = sum(ends[i] == n + 4 for i, n in enumerate(lengths[source]))
            assert rearranged == {0.0: 0, 1.0: sum(n >= 3 for n in lengths[source])}.get(rate, rearranged)
    assert whole > 8


@pytest.mark.parametrize("window", [2, 5, 1 << 16])
def test_rows_are_shuffled_inside_windows(folder: Path, window: int) -> None:
    """Each window of rows is read once before the next, in an order of its own; no window is longer than an epoch."""
    config = DataConfig({"code": 1.0}, fim_rate=0.3, shuffle_rows=window)
    plain = PackedDataset(folder, replace(config, shuffle_rows=1), 16).batch(0, 60)
    data = PackedDataset(folder, config, 16)
    mixed = data.batch(0, 60)
    lengths = [len(d) for d in numbered(40, 10)]
    size = min(window, int(1 / data.epochs(1)["code"]))
    assert size <= (sum(lengths) + 4 * 40) // 16
    orders = []
    for first in range(0, 60 - size + 1, size):
        rows = [plain.documents[first : first + size].index(row) for row in mixed.documents[first : first + size]]
        assert sorted(rows) == list(range(size))
        assert (mixed.tokens[first : first + size] == plain.tokens[first : first + size][rows]).all()
        orders.append(tuple(rows))
    assert len(set(orders)) > 1


def test_neighbouring_samples_are_of_different_documents(tmp_path: Path, tokenizer: bpe.Tokenizer) -> None:
    """Otherwise small batches learn each document in turn (see the loader's docstring)."""
    documents = [[20 + i] * 160 for i in range(50)]
    data = PackedDataset(build(tmp_path, tokenizer, {"code": [documents]}), NO_FIM, 16)
    seen = [row[0].document for row in data.batch(0, 400).documents]
    same = sum(a == b for a, b in itertools.pairwise(seen))
    assert same < 24  # 400 / 50 by chance; nine tenths in the order of the stream


def test_epochs_have_different_orders_and_are_counted(folder: Path) -> None:
    data = PackedDataset(folder, DataConfig({"prose": 1.0}, fim_rate=0.0), 8)
    stream_length = sum(len(d) + 1 for d in numbered(7, 100))
    assert data.epochs(0) == {"prose": 0.0}
    assert data.epochs(stream_length)["prose"] == 8.0  # stream_length rows of 8 tokens
    assert data.epochs(3)["prose"] == pytest.approx(24 / stream_length)
    orders: dict[int, list[int]] = {}
    for row in data.batch(0, stream_length).documents:
        for piece in row:
            if piece.start == 0:
                orders.setdefault(piece.epoch, []).append(piece.document)
    assert set(orders) == set(range(8))
    assert len({tuple(order) for order in orders.values()}) == 8


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_a_step_without_overlap_and_agree_at_any_count(folder: Path, ranks: int) -> None:
    config = DataConfig({"code": 3.0, "prose": 1.0}, fim_rate=0.5, seed=3)
    whole = PackedDataset(folder, config, 16).batch(0, 80)
    tokens, pieces = [], []
    loaders = [PackedDataset(folder, config, 16) for _ in range(ranks)]
    each = 8 // ranks
    for step in range(10):
        for rank, loader in enumerate(loaders):
            part = loader.batch(step * 8 + rank * each, each)
            assert len(part.tokens) == each  # all ranks take the same number of steps, whatever the data
            tokens.append(part.tokens)
            pieces += part.documents
    assert (np.concatenate(tokens) == whole.tokens).all()
    assert pieces == whole.documents


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(list(range(0, 60, 3))))
def test_samples_do_not_depend_on_what_was_read_before(folder: Path, order: list[int]) -> None:
    config = DataConfig({"code": 1.0, "prose": 2.0}, fim_rate=0.3)
    straight = PackedDataset(folder, config, 16).batch(0, 60)
    jumping = PackedDataset(folder, config, 16)
    for number in order:
        one = jumping.batch(number, 1)
        assert (one.tokens[0] == straight.tokens[number]).all()
        assert one.documents[0] == straight.documents[number]


def test_seed_changes_the_order_and_nothing_else(folder: Path) -> None:
    rows = [PackedDataset(folder, DataConfig({"code": 1.0}, fim_rate=0.0, seed=seed), 16).batch(0, 10).tokens for seed in (0, 0, 1)]
    assert (rows[0] == rows[1]).all() and (rows[0] != rows[2]).any()


def test_fewer_tokens_than_a_row_wraps_through_epochs(tmp_path: Path, tokenizer: bpe.Tokenizer) -> None:
    data = PackedDataset(build(tmp_path, tokenizer, {"code": [[[50, 51]]]}), NO_FIM, 10)
    eos = tokenizer.eos_id
    assert data.batch(0, 2).tokens.tolist() == [[50, 51, eos] * 3 + [50, 51], [51, eos] + [50, 51, eos] * 3]
    assert [(p.epoch, p.document, p.start, p.stop) for p in data.batch(1, 1).documents[0]] == [
        (3, 0, 1, 3),
        (4, 0, 0, 3),
        (5, 0, 0, 3),
        (6, 0, 0, 2),
    ]
    assert data.epochs(3) == {"code": 10.0}


def test_fim_documents_in_the_stream(tmp_path: Path, tokenizer: bpe.Tokenizer) -> None:
    document = list(range(20, 60))
    data = PackedDataset(build(tmp_path, tokenizer, {"code": [[document]]}), DataConfig(fim_rate=1.0, shuffle_rows=1), 7)
    stream = data.batch(0, 2 * 44).tokens[:, :-1].ravel()
    for at in range(0, 44 * 10, 44):
        one = stream[at : at + 44].tolist()
        hole, end = one.index(tokenizer.fim_hole_id), one.index(tokenizer.fim_end_id)
        assert (one[0], one[-1]) == (tokenizer.fim_begin_id, tokenizer.eos_id)
        assert one[1:hole] + one[end + 1 : -1] + one[hole + 1 : end] == document


def test_pre_training_rows_cross_documents(tmp_path: Path, tokenizer: bpe.Tokenizer) -> None:
    data = PackedDataset(build(tmp_path, tokenizer, {"code": [[[21, 22, 23, 24, 25], [31, 32, 33, 34]]]}), NO_FIM, 10)
    row = data.batch(0, 1).tokens[0].tolist()
    first = [21, 22, 23, 24, 25, tokenizer.eos_id]
    second = [31, 32, 33, 34, tokenizer.eos_id]
    assert row in (first + second, second + first)  # 10 targets: one per input, borders included


def test_mixture_follows_the_weights(folder: Path) -> None:
    data = PackedDataset(folder, DataConfig({"code": 0.9, "prose": 0.1}), 16)
    assert data.sources == ("code", "prose") == PackedDataset(folder, DataConfig({"code": 1.0}), 16).sources
    counts = Counter(row[0].source for row in data.batch(0, 400).documents)
    assert abs(counts["prose"] - 40) < 2
    by_size = PackedDataset(folder, DataConfig(), 16).mixture
    code, prose = (sum(map(len, numbered(n, 0))) for n in (40, 7))
    assert abs(by_size.rows(1000)["code"] - 1000 * code / (code + prose)) < 2


def test_validation(folder: Path, tokenizer: bpe.Tokenizer) -> None:
    data = PackedDataset(folder, NO_FIM, 16)
    found = data.validation("code")
    expected = [token for text in ("x = 1\n", "été\n", "def") for token in [*tokenizer.encode(text), tokenizer.eos_id]]
    assert found.tokens.tolist() == expected
    assert (found.text, found.num_bytes, found.source) == ("x = 1\nété\ndef".encode(), 15, "code")
    assert data.validation().source == "code"
    short = data.validation("code", max_tokens=len(tokenizer.encode("x = 1\n")) + 1)
    assert (short.text, short.num_bytes, short.tokens[-1]) == (b"x = 1\n", 6, tokenizer.eos_id)
    assert data.validation("code", max_tokens=1).text == b"def"  # none fits: the shortest
    both = len(tokenizer.encode("x = 1\n")) + len(tokenizer.encode("def")) + 2
    assert data.validation("code", max_tokens=both).text == b"x = 1\ndef"  # the longer one between them is passed over
    with pytest.raises(DataError, match="'prose' .* has no validation text"):
        data.validation("prose")
    with pytest.raises(ConfigError, match="'speech' is not a source .* code, prose"):
        data.validation("speech")
    (folder / "code/validation.txt").write_bytes(b"x = 1\n")
    with pytest.raises(DataError, match="has 6 bytes, its tokens stand for 15"):
        data.validation("code")


def test_refusals(folder: Path, tokenizer: bpe.Tokenizer) -> None:
    with pytest.raises(ConfigError, match="names 'speech'.* its sources are code, prose"):
        PackedDataset(folder, DataConfig({"speech": 1.0}), 16)
    with pytest.raises(ConfigError, match=r"sequence_length \(0\)"):
        PackedDataset(folder, NO_FIM, 0)
    with pytest.raises(DataError, match=f"token ids up to {tokenizer.vocab_size - 1}, but the model's vocab_size is 200"):
        PackedDataset(folder, NO_FIM, 16, vocab_size=200)
    with pytest.raises(DataError, match=f"built with tokenizer {tokenizer.fingerprint}, but this run uses tokenizer abc"):
        PackedDataset(folder, NO_FIM, 16, tokenizer="abc")
    PackedDataset(folder, NO_FIM, 16, tokenizer=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size)
    edit(folder, tokenizer="0ld")
    with pytest.raises(DataError, match="shards were made with tokenizer 0ld"):
        PackedDataset(folder, NO_FIM, 16)


def test_empty_folders_and_sources(tmp_path: Path, tokenizer: bpe.Tokenizer) -> None:
    with pytest.raises(DataError, match="no training documents at all"):
        PackedDataset(build(tmp_path / "a", tokenizer, {"code": [[]]}), NO_FIM, 16)
    half = build(tmp_path / "b", tokenizer, {"code": [numbered(3, 10)], "prose": [[]]})
    with pytest.raises(DataError, match="source 'prose' .* has no training documents"):
        PackedDataset(half, DataConfig({"code": 1.0, "prose": 1.0}), 16)
    assert PackedDataset(half, DataConfig(), 16).mixture.sources == ("code",)


def test_wrong_eos_is_refused(tmp_path: Path, tokenizer: bpe.Tokenizer) -> None:
    with pytest.raises(DataError, match="index has eos_id 7, the tokenizer"):
        PackedDataset(build(tmp_path, tokenizer, {"code": [numbered(3, 10)]}, eos_id=7), NO_FIM, 16)


def test_the_first_samples_are_pinned(folder: Path) -> None:
    """The data order is part of a run's identity: these numbers may only change with a note in the changelog."""
    data = PackedDataset(folder, DataConfig({"code": 3.0, "prose": 1.0}, fim_rate=0.5, seed=1), 8)
    found = [[p.document for p in row] for row in data.batch(1000, 4).documents]

    assert found == PINNED


def test_no_torch() -> None:
    code = "import sys, rorqual.data.loader, rorqual.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PINNED = [[0, 2], [22, 27, 33], [34], [19, 35]]
