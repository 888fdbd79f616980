"""Errors that a user can cause. Scripts report them in one line, without a traceback, and exit with code 2."""


class UserError(ValueError):
    """A mistake in the input; the message names what, where, got, expected and remedy, in one line."""


class ConfigError(UserError):
    """A wrong flag, configuration file or combination of settings."""


class DataError(UserError):
    """A missing or faulty data set, label file or image."""


class CheckpointError(UserError):
    """A missing or faulty weights file."""


class WorkerError(UserError):
    """A loading process that died or could not be started."""


class TrainingError(UserError):
    """A training run that cannot continue, such as one with a loss that is not finite."""


class PruningError(UserError):
    """A network, a plan or settings with which the requested pruning is impossible."""


class QuantizationError(UserError):
    """A network, or values observed in calibration, with which the requested quantisation is impossible."""
