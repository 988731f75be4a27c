"""The error tree of models. Every message says what was asked, what was found and what to change.

ModelError
├── CheckpointError      a folder, file or tensor of a checkpoint is missing, mismatched or unsafe
│   └── UnsupportedModelError    the architecture, configuration value or option is not supported
├── TokenizerError       tokenizer files are missing or do not fit
├── ParamsError          a generation option is unknown, out of range or contradicts another
├── RequestError         one request cannot be served (too long, ids outside the vocabulary); the others can
└── DeviceError          the device, dtype or number of ranks asked for is not available
    └── RankLostError    the process of one of the model's ranks was killed or lost; starting again may work
"""

from batchloom.models.redaction import redacted


class ModelError(Exception):
    """The base class of every error that models raises deliberately. Its message shows no credentials of URLs."""

    def __str__(self) -> str:
        return redacted(super().__str__())


class CheckpointError(ModelError):
    """A checkpoint's folder, file or tensor is missing, mismatched or unsafe to read."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is readable, but its architecture or a configuration value is not supported."""


class TokenizerError(ModelError):
    """Tokenizer files are missing or do not fit each other."""


class ParamsError(ModelError, ValueError):
    """A generation option is unknown, out of range or contradicts another one."""


class RequestError(ModelError, ValueError):
    """One request cannot be served; the engine goes on with the others."""


class DeviceError(ModelError):
    """The device, dtype or number of ranks asked for is not available."""


class RankLostError(DeviceError):
    """The process of one of the model's ranks was killed or lost. The model is unusable; loading it again may work."""
