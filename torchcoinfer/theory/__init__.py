"""Rate-distortion theory and the planner. NumPy and SciPy only: numbers in, ``Plan`` out; no tensor is seen
here."""
