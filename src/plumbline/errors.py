"""The errors a user is meant to read: what is wrong, where, what was expected, and how to go on."""


class PlumblineError(Exception):
    """Base of all errors whose message is the whole story; shown without a traceback."""


class DataError(PlumblineError):
    """Data on disk are missing, broken or not what their format promises."""


class ConfigError(PlumblineError):
    """A parameter is unknown, of the wrong type or out of range."""
