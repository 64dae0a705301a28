"""The exceptions Rorqual raises on purpose; everything else that escapes is a bug of ours.

    RorqualError
    ├── ConfigError       a configuration that cannot be built (also a ValueError)
    ├── DataError         a corpus, shard or record that cannot be used (also a ValueError)
    ├── TokenizerError    a tokenizer that does not do what its file says
    ├── CheckpointError   a folder that is not a whole, safe checkpoint
    ├── RunError          a run directory in use, finished, or at odds with its configuration
    ├── NonFiniteError    training stopped because loss or gradients stayed non-finite
    ├── FormatError       numbers that a storage format cannot hold, or codes and scales that do not belong together (also a ValueError)
    ├── DeviceError       the machine lacks what was asked of it
    └── MissingExtraError an optional package is needed for what was asked

Messages say four things: what is wrong, the value found, what is required, what to do.
"""


class RorqualError(Exception):
    """Base of every error that is meant for the user; the command line prints it without a traceback."""


class ConfigError(RorqualError, ValueError):
    """A configuration that contradicts itself or names something unknown."""


class DataError(RorqualError, ValueError):
    """Input data, or a built data folder, that cannot be used."""


class TokenizerError(RorqualError, ValueError):
    """A tokenizer file that cannot be loaded, or that fails its round-trip self-test."""


class CheckpointError(RorqualError):
    """A checkpoint folder that is incomplete, inconsistent or unsafe."""


class RunError(RorqualError):
    """A run directory that is in use, finished, or does not match the configuration given."""


class NonFiniteError(RorqualError):
    """Too many consecutive optimiser steps had a non-finite loss or gradient norm."""


class FormatError(RorqualError, ValueError):
    """Numbers that a storage format cannot hold, or codes and scales that do not belong together."""


class DeviceError(RorqualError):
    """The machine lacks a device, a compiler or memory that the request needs."""


class MissingExtraError(RorqualError, ImportError):
    """An optional package is needed; the message names the feature, the package and the pip line."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs the package {package}, which is not installed; run: pip install 'rorqual[{extra}]'")
