"""Why the store cannot do what was asked, in words that a frame can carry."""


class StoreError(Exception):
    """The store cannot do what was asked; the message says why, naming the file or the model."""


def printable(text: str) -> str:
    """`text` less what came from file names that are no UTF-8, which JSON cannot carry."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
