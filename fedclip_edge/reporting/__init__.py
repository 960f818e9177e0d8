"""What every page that the package writes is made of: figures, charts, one self-contained file."""
