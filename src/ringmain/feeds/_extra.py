"""What to tell someone whose Python lacks a feed's library."""


def missing(error: ImportError, extra: str) -> ImportError:
    """Return the error that names the extra to install, or the given one if the library is there but broken."""
    library = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not library:
        return error
    return ImportError(f"ringmain.feeds.{extra} needs {library}: pip install 'ringmain[{extra}]'", name=library)
