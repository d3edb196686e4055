"""What can be wrong with a checkpoint, as exceptions a caller can tell apart."""


class CheckpointError(ValueError):
    """The files are there, but are damaged, incomplete, or hold a model this package does not implement."""


class ChatTemplateError(ValueError):
    """A model's chat template is none, refuses the messages, or does more than its limits allow."""


class ModelNotFoundError(FileNotFoundError):
    """No file, folder, registered name or hub repository answers to the model's name, or it cannot be fetched."""
