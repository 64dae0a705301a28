"""A small tokenizer and the text it is trained on: code, prose, and characters of several scripts."""

from __future__ import annotations

import functools
import tempfile

from rorqual.tokenizer import bpe

VOCABULARY = 440

LINES = (
    "def total(values, start=0):\n    result = start\n    for value in values:\n        result += value\n    return result\n",
    'class Name(object):\n    """Holds a name."""\n\n    def __init__(self, name: str) -> None:\n        self.name = name\n',
    "if (a[0] == {'key': 12345}):\r\n\tprint('done!');\r\n",
    "The quick brown fox jumps over the lazy dog. It is done, isn't it?\n\n",
    "\u6df1\u5ea6\u6c42\u7d22\u7684\u6a21\u578b\u3002 Na\u00efve caf\u00e9 \u2014 \u201cquoted\u201d text\u2026\n",
    "for (int i = 0; i < 100; ++i) { sum += x[i]; }\n\n\n",
)


@functools.cache
def tokenizer() -> bpe.Tokenizer:
    """Trained once per process."""
    with tempfile.TemporaryDirectory() as folder:
        return bpe.train(LINES * 20, VOCABULARY, folder)
