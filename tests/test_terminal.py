"""What people read fits where they read it."""

import pytest

from ringmain.terminal import columns, fitting, table

ROWS = [("", "GB/s", "CPU s/GB", "stalls"), ("receive plain", "4.100", "0.094", "12"), ("send", "3.9", "0.1", "0")]


def test_columns_are_those_of_the_environment_or_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import os
    import pty
    import struct
    import termios

    main, side = pty.openpty()
    reader, writer = os.pipe()
    try:
        monkeypatch.delenv("COLUMNS", raising=False)
        assert columns(side) is None  # nobody has told it yet
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 132, 0, 0))
        assert (columns(side), columns(writer)) == (132, None)
        for said, meant in (("40", 40), ("0", 132), ("wide", 132), ("-3", 132)):
            monkeypatch.setenv("COLUMNS", said)
            assert columns(side) == meant
    finally:
        for fd in (main, side, reader, writer):
            os.close(fd)


def test_a_line_leaves_out_its_last_parts_where_they_do_not_fit() -> None:
    line = "1.00 GiB  25%  0:00:10  in 1.00 MiB/s"
    assert fitting(line, None) == fitting(line, 37) == line
    assert fitting(line, 36) == "1.00 GiB  25%  0:00:10"
    assert fitting(line, 12) == "1.00 GiB"
    assert fitting(line, 4) == "1.00"


def test_a_table_that_fits_is_one() -> None:
    text = table(ROWS, None, right=True)
    assert text.splitlines()[1] == "receive plain  4.100     0.094      12"
    assert table(ROWS, len(text.splitlines()[1]), right=True) == text
    assert table(ROWS, None).splitlines()[2] == "send           3.9    0.1       0"


@pytest.mark.parametrize("width", [20, 30, 37])
def test_columns_that_do_not_fit_follow_below(width: int) -> None:
    bands = table(ROWS, width, right=True).split("\n\n")
    assert len(bands) > 1
    cells = []
    for band in bands:
        lines = band.splitlines()
        assert [line[:13].strip() for line in lines] == [row[0] for row in ROWS]
        assert max(map(len, lines)) <= max(width, 13 + 2 + 8)
        cells.append([line[13:].split("  ") for line in lines])
    words = [[word.strip() for band in cells for word in band[at] if word.strip()] for at in range(3)]
    assert words == [list(row[1:]) for row in ROWS]  # each figure once, in its order
