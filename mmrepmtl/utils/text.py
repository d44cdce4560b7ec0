def one_line(text: str) -> str:
    r"""A text for people on one line: line breaks, control characters and what is no character as escapes.

    Names of files may hold all of these: 'a\nb.jpg' becomes 'a\\nb.jpg' with a visible backslash.
    """
    if text.isprintable():
        return text
    return ''.join(char if char.isprintable() else char.encode('unicode_escape').decode('ascii') for char in text)
