"""Every operation that has more than one implementation, and the one place that chooses (design: kernel choice in one place).

The plain PyTorch version (reference.py) defines what is right; the compiled C++ version (native.py) is taken for FP32
tensors on a CPU where it could be built. `backend_report` says which is used and why.
Shape letters: b batch, s query position, t key position, n tokens, w rows, m model width, f FFN width, e expert, k chosen
expert, h head, d head width, r rotary width, p pair, v vocabulary.
"""

from __future__ import annotations

from rorqual.kernels.reference import *  # noqa: F403
