"""One file per HTTP route."""
