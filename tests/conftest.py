"""Its being here puts this folder on the path, so that tests of all areas can share ``zoo``."""
