"""python -m ringmain.bench.worker FD...: some streams of a measurement, in a process of their own."""

import logging
import sys

import uvloop

from ringmain.bench.streams import serve_parent
from ringmain.terminal import write_whole_texts

if __name__ == "__main__":
    logging.getLogger("ringmain").setLevel(logging.ERROR)  # the parent has warned already
    write_whole_texts()
    uvloop.run(serve_parent([int(fd) for fd in sys.argv[1:]]))
