"""Every exception Phiscope raises on purpose.

    PhiscopeError
    |-- ConfigError (ValueError)         a config that cannot be right
    |-- UnsupportedError                 sound, but not something this package or machine does
    |-- CheckpointError                  weight files that are damaged, incomplete or unsafe
    |-- TokenizerError                   tokenizer files that are damaged or of another model
    |-- HubError                         a model that could not be fetched
    |-- ContextLengthError (ValueError)  more tokens than the context holds
    |-- PointError (ValueError)          a point that does not exist in this model
    |-- NonFiniteError                   a NaN or an infinity where a number was due
    |-- TrainingError                    a training run that cannot start, resume or go on
    |-- InputError                       input that cannot be read as rows
    |-- StoreError                       a store that is damaged, busy, or of another job
    |-- FilterError                      a filter that is damaged, of another model, or unfittable
    `-- MissingExtraError (ImportError)  an optional dependency that is not installed

A wrong argument is a plain `ValueError` or `TypeError`.
"""


class PhiscopeError(Exception):
    """The root: catch this to catch everything raised on purpose."""


class ConfigError(PhiscopeError, ValueError):
    """A config that cannot be right."""


class UnsupportedError(PhiscopeError):
    """A sound request that this package, or this machine, does not serve."""


class CheckpointError(PhiscopeError):
    """Weight files that are damaged, incomplete, misnamed or unsafe to open."""


class TokenizerError(PhiscopeError):
    """Tokenizer files that are damaged or belong to another model."""


class HubError(PhiscopeError):
    """A model that could not be found or fetched."""


class ContextLengthError(PhiscopeError, ValueError):
    """More tokens than the model's context holds."""


class PointError(PhiscopeError, ValueError):
    """A point that this model does not have."""


class NonFiniteError(PhiscopeError):
    """A NaN or an infinity where a number was due."""


class TrainingError(PhiscopeError):
    """A training run that cannot start, resume or go on."""


class InputError(PhiscopeError):
    """Input that cannot be read as rows."""


class StoreError(PhiscopeError):
    """A store that is damaged, in use, or the work of another job."""


class FilterError(PhiscopeError):
    """A filter that is damaged, belongs to another model, or cannot be fitted on such labels."""


class MissingExtraError(PhiscopeError, ImportError):
    """An optional dependency that is not installed; `extra` names the group that brings it."""

    def __init__(self, extra: str) -> None:
        super().__init__(f"this needs an optional dependency: pip install 'phiscope[{extra}]'")
        self.extra = extra
