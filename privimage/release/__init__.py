"""What leaves the private side, made readable: pictures and the report."""
