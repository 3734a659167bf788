"""Errors that are the user's to mend: one line that names the thing, the value, and what would be right."""


class UserError(Exception):
    """Shown by the command without a traceback; the command exits with status 1."""


class ConfigError(UserError):
    """A configuration file or override cannot be used."""


class ShardError(UserError):
    """Shards are missing, empty, damaged, or do not fit what is asked of them."""


class RunError(UserError):
    """A run folder is missing, incomplete, or belongs to another configuration."""


class TrainingError(UserError, ValueError):
    """Training ran away: values are not finite any more."""


class NothingToGive(TrainingError):
    """A client's clips hold nothing that a phase could learn from; it is left out of the round."""


class ClusterError(UserError):
    """The Ray cluster cannot hold what the configuration asks for."""
