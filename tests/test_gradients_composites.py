"""Functions that are built from operators have no record of their own; each is proved by the definition, here."""
