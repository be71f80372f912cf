"""Running a split model: the wire format (``wire``, ``decoder``; no torch) and ``session``."""
