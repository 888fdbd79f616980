"""What a user can cause. Scripts show these as one line, without a traceback, and exit with code 2."""


class UserError(ValueError):
    """A mistake in what the user gave: says what, where, got, expected, remedy, in one line."""


class ConfigError(UserError):
    """A flag, a configuration file or a combination of settings."""


class DataError(UserError):
    """A data set, a label file or an image."""


class CheckpointError(UserError):
    """A file of weights."""


class WorkerError(UserError):
    """A loading process that died, or could not be started."""


class TrainingError(UserError):
    """A run that cannot go on, such as a loss that is not finite."""


class PruningError(UserError):
    """A network, a plan or settings that allow no pruning as asked."""


class QuantizationError(UserError):
    """A network, or numbers seen while calibrating, that allow no quantisation as asked."""
