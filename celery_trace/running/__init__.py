"""What runs now on a host, since when and where: read from the black boxes of living processes."""
