"""Whether drafts pay, by what steps with and without them have cost (specification section 2.5). No torch.

    switch = DraftSwitch()
    speculates = switch.speculates()
    ...                                        # a decoding step, timed
    switch.measure(speculates, seconds, rows, tokens)

Acceptance and cost are both in seconds per token; outliers of a busy machine fall to the median.
"""

from __future__ import annotations

from collections import deque
from statistics import median

PROBE_STEPS = 3
"""Steps of one look at the other way."""
PROBE_EVERY, PROBE_MOST = 128, 1024
"""Steps between two looks: the first number after a change of mind, doubled up to the second while the decision stands."""
GAIN = 0.03
"""Share of the cost that drafts must save: a tie is noise, and a wrong choice for plain steps costs no more than this."""


class DraftSwitch:
    """A few steps of each at first; then the cheaper way, with a look at the other one now and then, so that both costs stay known."""

    def __init__(self) -> None:
        self._chosen, self._steps = True, 0
        self._left, self._every, self._next = 2 * PROBE_STEPS, PROBE_EVERY, 0
        self._taken = {way: deque[tuple[float, int, int]](maxlen=PROBE_EVERY) for way in (False, True)}

    def speculates(self, ahead: int = 0) -> bool:
        """Whether the next step should draft, or the one `ahead` (0 or 1) steps later, where no decision falls in between."""
        steps = self._steps + ahead
        if steps < 2 * PROBE_STEPS:
            return steps >= PROBE_STEPS
        looks = self._left > ahead or (self._left == 0 and steps >= self._next)
        return self._chosen != looks

    def measure(self, speculated: bool, seconds: float, rows: int, tokens: int) -> None:
        """Notes a decoding step of `rows` sequences that gave `tokens`; after each look, decides anew."""
        self._steps += 1
        self._taken[speculated].append((seconds / rows, rows, tokens))
        if self._left == 0:
            if self._steps >= self._next:
                self._left, other = PROBE_STEPS, self._taken[not self._chosen]
                while len(other) > PROBE_STEPS:  # of the way not taken, the last look and this one count
                    other.popleft()
            return
        self._left -= 1
        if self._left == 0:
            pays = self._cost(True) <= (1 - GAIN) * self._cost(False)
            self._every = min(2 * self._every, PROBE_MOST) if pays == self._chosen else PROBE_EVERY
            self._chosen, self._next = pays, self._steps + self._every

    def _cost(self, way: bool) -> float:
        """Median seconds of a row over its mean number of tokens."""
        taken = self._taken[way]
        return median(t[0] for t in taken) * sum(t[1] for t in taken) / sum(t[2] for t in taken)
