"""Measure ringmain against what else there is."""
