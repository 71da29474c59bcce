"""Guessing ahead: guesses of the next tokens travel with a confirmed token, so that a right guess saves a trip."""
