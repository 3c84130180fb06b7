"""What to tell someone whose Python lacks a feed's library."""

_OURS = "ringmain.feeds."


def missing(error: ImportError, extra: str) -> ImportError:
    """Return the error that names the extra to install, or the given one if the library is there but broken.

    Where it is that of another feed, which this one is made of, it is what that one lacks.
    """
    library = (error.name or "").partition(".")[0]
    told = isinstance(error, ModuleNotFoundError) or str(error).startswith(_OURS)
    if not told or not library or library == "ringmain":
        return error
    return ImportError(f"{_OURS}{extra} needs {library}: pip install 'ringmain[{extra}]'", name=library)
