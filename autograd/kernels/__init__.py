"""Arrays in, arrays out. Numba lives here and nowhere else; nothing of the project is imported."""
