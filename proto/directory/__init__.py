"""Who is there: signed records that expire, and the directory in which they are announced and found."""
