"""Products of a few rows with a matrix, compiled for this processor while the peer starts (the extra `fast`)."""
