"""Blocks of the paged cache: reference counts, and a prefix cache by chained hashes (vLLM's scheme). No torch.

A full block is known by (hash of the block before it, its token ids), so a hit means that the whole prefix is the same; the ids are
compared too, because hashes can collide. Blocks nobody uses keep their contents until they are needed, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from rorqual.errors import ConfigError

BLOCK_SIZE = 16
ROOT = 0


class BlockPool:
    """`num_blocks` blocks of `block_size` token slots. `on_free` is called with a block whose contents are given up."""

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE, on_free: Callable[[int], None] | None = None) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(f"num_blocks ({num_blocks}) and block_size ({block_size}) must be at least 1")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._on_free = on_free
        self._references = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and unused, oldest first
        self._known: dict[int, int] = {}  # hash -> block
        self._content: dict[int, tuple[int, int, tuple[int, ...]]] = {}  # block -> hash, parent hash, ids

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, those with idle contents included."""
        return len(self._empty) + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold."""
        return 1 - self.num_free / self.num_blocks

    def references(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._references[block]

    def allocate(self) -> int | None:
        """A block with one reference, or None when all are held."""
        if self._empty:
            block = self._empty.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            own, _, _ = self._content.pop(block)
            del self._known[own]
            self._freed(block)
        else:
            return None
        self._references[block] = 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up one reference of each; the last blocks of a sequence become the first to be used again."""
        for block in reversed(blocks):
            if self._references[block] < 1:
                raise ValueError(f"block {block} is released but nobody holds it")
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._content:
                self._idle[block] = None
            else:
                self._freed(block)
                self._empty.append(block)

    def register(self, block: int, parent: int, ids: Sequence[int]) -> int:
        """Makes a full block findable; returns its hash. The first block with these contents stays the one that is found."""
        own = self._hash(parent, tuple(ids))
        if own not in self._known and block not in self._content:
            self._known[own] = block
            self._content[block] = (own, parent, tuple(ids))
        return own

    def match(self, ids: Sequence[int], most: int) -> tuple[list[int], int]:
        """(blocks, hash of the last): the longest known prefix of at most `most` tokens, each block with a reference for the caller."""
        blocks, parent = [], ROOT
        for start in range(0, min(most, len(ids)) - self.block_size + 1, self.block_size):
            part = tuple(ids[start : start + self.block_size])
            own = self._hash(parent, part)
            block = self._known.get(own)
            if block is None or self._content[block][1:] != (parent, part):
                break
            self._references[block] += 1
            self._idle.pop(block, None)
            blocks.append(block)
            parent = own
        return blocks, parent

    def forget(self) -> None:
        """Makes no block findable any more; what idle ones held is given up."""
        self._known.clear()
        self._content.clear()
        for block in self._idle:
            self._freed(block)
        self._empty.extend(self._idle)
        self._idle.clear()

    @staticmethod
    def _hash(parent: int, ids: tuple[int, ...]) -> int:
        return hash((parent, ids))

    def _freed(self, block: int) -> None:
        if self._on_free is not None:
            self._on_free(block)
