"""Building blocks of reports: formatted figures, charts, tables and self-contained HTML pages."""
