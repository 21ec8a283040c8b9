"""Numbers, pictures and clips become one self-contained HTML page, PNGs and videos."""
