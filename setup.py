"""Build the compiled modules and the man pages; everything else about the package is in pyproject.toml.

Four environment switches, each on when set to anything but 0: RINGMAIN_DEBUG (no optimisation, debug symbols),
RINGMAIN_SANITIZE (address and undefined-behaviour sanitizers), RINGMAIN_COVERAGE (line tracing), RINGMAIN_ANNOTATE
(Cython's HTML report beside each source). Compiler flags of your own go in CFLAGS.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup


def switched_on(name: str) -> bool:
    """Tell whether the environment switch RINGMAIN_<name> is on."""
    return os.environ.get(f"RINGMAIN_{name}", "0") not in ("", "0")


# Pythons that were built with debug symbols ask for them in modules too: four times their size.
flags = ["-O0", "-g"] if switched_on("DEBUG") else ["-O3", "-g0"]
if switched_on("SANITIZE"):
    flags += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
# An ordinary build must not find the objects of a sanitized one, nor the other way round.
base = "build/sanitized" if switched_on("SANITIZE") else "build"
macros = [("CYTHON_TRACE_NOGIL", "1")] if switched_on("COVERAGE") else []

extensions = [
    Extension(
        f"ringmain.{source.stem}",
        [str(source)],
        extra_compile_args=flags,
        extra_link_args=[flag for flag in flags if "sanitize" in flag],
        define_macros=macros,
    )
    for source in sorted(Path("ext/ringmain").glob("*.pyx"))
]

# What the command line tells of itself, without a compiled module.
sys.path[:0] = ["src", "docs"]
import manpages  # noqa: E402

setup(
    data_files=[("share/man/man1", manpages.main(Path(base) / "man"))],
    options={"build": {"build_base": base}},
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir="build/cython",
        annotate=switched_on("ANNOTATE"),
        compiler_directives={
            "language_level": 3,
            "linetrace": bool(macros),
            "auto_pickle": False,  # memory and sockets cannot be pickled
            "autotestdict": False,  # no doctests in compiled modules
        },
    ),
)
