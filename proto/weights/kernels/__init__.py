"""Products of a few rows with a matrix, compiled for this processor while a program starts (the extra `fast`)."""
