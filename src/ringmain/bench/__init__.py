"""The instrument behind `ringmain bench`: streams that are measured at both ends, and what is made of the figures."""
