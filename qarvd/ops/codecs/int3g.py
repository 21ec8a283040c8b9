"""Three bits with a scale for each group of columns: codes point into a table of 8 levels.

The levels are those that leave normal numbers, divided by the largest of 16, the least squared error.
"""

from __future__ import annotations

from .grouped import grouped

LEVELS = (-0.923919, -0.594668, -0.336526, -0.109237, 0.109237, 0.336526, 0.594668, 0.923919)
CODECS = grouped("int3g", (2, 1), LEVELS)
