"""Measure ringmain against what else moves bytes: `python -m benchmarks list`, `python -m benchmarks run NAME...`."""
