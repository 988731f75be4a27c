"""The error tree of models. Every message says what was asked, what was found and what to change.

ModelError
├── CheckpointError      a folder, file or tensor of a checkpoint is missing, mismatched or unsafe
│   └── UnsupportedModelError    the architecture, configuration value or option is not one we have
├── TokenizerError       tokenizer files are missing or do not fit
├── ParamsError          a generation option is unknown, out of range or contradicts another
├── RequestError         one request cannot be served (too long, ids outside the vocabulary); the others can
└── DeviceError          the device, dtype or number of ranks asked for is not there
    └── RankLostError    a process that held a part of the model ended from outside; a new start may work
"""


class ModelError(Exception):
    """The root: catch it to catch every error that models raises on purpose."""


class CheckpointError(ModelError):
    """A checkpoint's folder, file or tensor is missing, mismatched or unsafe to read."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is readable, but its architecture or a configuration value is not one we have."""


class TokenizerError(ModelError):
    """Tokenizer files are missing or do not fit each other."""


class ParamsError(ModelError, ValueError):
    """A generation option is unknown, out of range or contradicts another one."""


class RequestError(ModelError, ValueError):
    """One request cannot be served; the engine goes on with the others."""


class DeviceError(ModelError):
    """The device, dtype or number of ranks asked for is not available."""


class RankLostError(DeviceError):
    """A process that held a part of the model was ended from outside; the model is gone, a new one may work."""
