"""Downloads from the Hub into the cache: planned, resumed, checked, repaired."""
