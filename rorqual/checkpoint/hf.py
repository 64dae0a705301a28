"""The official Hugging Face folder, both ways: `load` (checkpoint/reader.py) and `export` (checkpoint/writer.py).

Both directions are exact: a folder loaded in its own dtype and exported again holds the same bits.
"""

from __future__ import annotations

from rorqual.checkpoint.names import settle
from rorqual.checkpoint.reader import LoadReport, load
from rorqual.checkpoint.writer import export, export_tensors

__all__ = ["LoadReport", "export", "export_tensors", "load", "settle"]
