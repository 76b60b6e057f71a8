"""What text becomes before it is shown: file names and captions are anyone's work."""


def printable(text: str) -> str:
    """`text` with backslash escapes for all that could not be shown, or could steer a terminal.

    A file may be called "\\x1b[2J.jpg", or by bytes that are no text at all.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
