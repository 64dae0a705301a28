"""Published members of the family, for the tests of the planner."""

from __future__ import annotations

from rorqual.presets import preset

V3 = preset("v3_671b")
V2 = preset("v2_236b")
V2_LITE = preset("v2_lite_16b")
MOONLIGHT = preset("moonlight_16b")
KIMI_K2 = preset("kimi_k2")
