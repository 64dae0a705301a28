"""Devices that a plan can be made for: peaks, memory, links, price, each with its source. No torch.

Peaks are dense, without structured sparsity, in FLOP/s; memory in bytes; bandwidths in bytes per second and per device. `scale_up`
joins the devices of one node (NVLink, Infinity Fabric), in one direction; `scale_out` is a device's share of the network between
nodes. A JSON file with the same fields describes any other device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError

GB = 1e9


@dataclass(frozen=True)
class Hardware:
    """One device in its usual node. `price` is US dollars an hour for one device; None where nothing is assumed."""

    name: str
    bf16: float
    fp8: float
    fp32: float
    memory: float
    memory_bandwidth: float
    scale_up: float
    scale_out: float
    node_size: int
    price: float | None
    source: str
    price_source: str = ""

    def __post_init__(self) -> None:
        for name in ("bf16", "fp32", "memory", "memory_bandwidth", "scale_out"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"hardware field {name} ({getattr(self, name)!r}) must be a positive number")
        if self.fp8 < 0 or self.scale_up <= 0 or self.node_size < 1 or (self.price is not None and self.price < 0):
            raise ConfigError(f"hardware {self.name!r}: fp8 and price must be 0 or more, scale_up positive, node_size at least 1")

    @property
    def linear_peak(self) -> float:
        """Peak of the format that the Linears run in: FP8 where the device has it (report section 3.3), else BF16."""
        return self.fp8 or self.bf16


_NVIDIA = "NVIDIA data sheet, dense"
HARDWARE: dict[str, Hardware] = {
    one.name: one
    for one in (
        Hardware("h800", 989.4e12, 1978.9e12, 66.9e12, 80 * GB, 3350 * GB, 160 * GB, 50 * GB, 8, 2.0,
                 "H100 SXM's chip; NVLink 160 and InfiniBand 50 GB/s from the report, section 3.2.2", "report, table 1"),
        Hardware("h100", 989.4e12, 1978.9e12, 66.9e12, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 8, 2.95,
                 f"{_NVIDIA} (SXM5); one 400 Gb/s NIC a GPU", "median of 37 providers' posted on-demand prices, May 2026"),
        Hardware("h200", 989.4e12, 1978.9e12, 66.9e12, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 8, 3.5,
                 f"{_NVIDIA} (SXM); one 400 Gb/s NIC a GPU", "lower end of specialised providers' posted prices, May 2026"),
        Hardware("a100", 312e12, 0.0, 19.5e12, 80 * GB, 2039 * GB, 300 * GB, 25 * GB, 8, 1.3,
                 f"{_NVIDIA} (SXM4, 80 GB, no FP8); one 200 Gb/s NIC a GPU", "specialised providers' posted prices, May 2026"),
        Hardware("b200", 2250e12, 4500e12, 75e12, 180 * GB, 7700 * GB, 900 * GB, 50 * GB, 8, 3.75,
                 f"{_NVIDIA} (HGX B200, per GPU); one 400 Gb/s NIC a GPU", "lowest confirmed on-demand price of 26 providers, June 2026"),
        Hardware("gb200", 2500e12, 5000e12, 80e12, 186 * GB, 8000 * GB, 900 * GB, 50 * GB, 72, None,
                 f"{_NVIDIA} (GB200 NVL72, per GPU); one 400 Gb/s NIC a GPU"),
        Hardware("mi300x", 1307.4e12, 2614.9e12, 163.4e12, 192 * GB, 5300 * GB, 448 * GB, 50 * GB, 8, 3.0,
                 "AMD data sheet, dense; seven links of 64 GB/s each way; one 400 Gb/s NIC a GPU", "lower end of posted prices, April 2026"),
        Hardware("laptop", 58e9, 0.0, 58e9, 24 * GB, 13.4 * GB, 13.4 * GB, 0.1 * GB, 1, 0.0,
                 "two AVX2 cores in FP32, rates as `rorqual doctor` measures them", "your own"),
    )
}  # fmt: skip
"""By the name that `--gpu` takes."""


def hardware(name: str | Path) -> Hardware:
    """A device of the table, or of a JSON file; ConfigError lists the names, or what the file lacks."""
    if str(name).lower() in HARDWARE:
        return HARDWARE[str(name).lower()]
    path = Path(name)
    if path.suffix != ".json":
        raise ConfigError(f"GPU {str(name)!r} is not known; there are {', '.join(HARDWARE)}, or a JSON file with the same fields")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
    return from_fields(raw, path)


def from_fields(raw: Any, origin: Path) -> Hardware:
    """A device from the object of a JSON file; fields with a default may be left out."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{origin} holds a {type(raw).__name__}; a device is an object")
    known = [field.name for field in fields(Hardware)]
    unknown = sorted(set(raw) - set(known))
    missing = [name for name in known if name not in raw and name not in ("price_source", "price", "source", "name")]
    if unknown or missing:
        wrong = f"unknown fields {', '.join(unknown)}" if unknown else f"fields missing: {', '.join(missing)}"
        raise ConfigError(f"{origin}: {wrong}; a device has {', '.join(known)}")
    for name, value in raw.items():
        if name not in ("name", "source", "price_source") and not (name == "price" and value is None) and type(value) not in (int, float):
            raise ConfigError(f"{origin}: {name} ({value!r}) must be a number")
    return Hardware(**{"name": origin.stem, "price": None, "source": str(origin), **raw})


def as_table() -> list[dict[str, Any]]:
    """Every device as plain fields, for `--explain` and documentation."""
    return [asdict(one) for one in HARDWARE.values()]
