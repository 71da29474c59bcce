"""Guessing ahead: tokens that may come next travel with the one that does, so that a right guess costs no trip."""
